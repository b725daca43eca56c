"""A step's run: one call of the reference's program for a step of a group, as mechanisms revise it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from properties.expectation.group_step import numbers
from properties.mechanisms.carrying import Errors, Moments, carried, moments_of
from properties.mechanisms.revisions import finite
from properties.mechanisms.step_data import Bools, StepData
from reference.padding import Layout
from reference.program import compiled_step
from reference.signature import StepInput, StepOutput


def computed(where: Layout, given: StepInput) -> StepOutput:
    """Return what the reference's program gives for a step's input."""
    return numbers(compiled_step(where.bucket)(given))


@dataclass(frozen=True, slots=True)
class StepRun:
    """One call of the reference's program for a step: over whom, with what, and its output as it was revised.

    Attributes:
        training: It is normalised with the members' batch.
        bad: What is not finite in the members' input, or is made so.
        errors: Of mean and scale, beyond those of a right subject.
    """

    members: tuple[int, ...]
    training: bool
    where: Layout
    given: StepInput
    output: StepOutput
    bad: tuple[Bools, ...]
    errors: Errors

    @property
    def data(self) -> StepData:
        """The step's data."""
        return StepData.of(self.given, self.where)

    @property
    def moments(self) -> Moments:
        """What the step is normalised with by a right subject."""
        output, data = self.output, self.data
        if self.training:
            return moments_of(data, (output.mean, output.mean_bound), (output.var, output.var_bound))
        rows = np.asarray(self.given.parameters)
        return moments_of(data, (rows[2], rows[3]), (rows[4], rows[5]))

    @property
    def poisoned(self) -> Bools:
        """The channels with an input that is not finite, which the program computes as zero, (C,)."""
        channels: Bools = np.logical_or.reduce([mask.any(axis=(0, 2)) for mask in self.bad])
        return channels

    def padded(self, channels: Bools) -> Bools:
        """Return a mask (C,) for the padded channels."""
        full = np.zeros(self.where.bucket.channels, np.bool_)
        full[: len(channels)] = channels
        return full

    def widened(self, errors: Errors) -> StepRun:
        """Return the run with additional errors of its mean and scale, carried to its output."""
        errors = finite(errors)
        total = self.errors._replace(
            mean=self.errors.mean + errors.mean, scale=self.errors.scale + errors.scale
        )
        return replace(self, output=carried(self.data, self.output, self.moments, errors), errors=total)
