"""Shards: a subject's campaign cut into items that test runners can spread, with disjoint seeds.

Light until a shard runs. One run (one set of rank groups) serves all shards of a process that share a device;
the plugin closes them at the end, and so does the interpreter.
"""

from __future__ import annotations

import atexit
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from verify.config import DEFAULT_MIN_CASES, Config
from verify.engine.launchers import launched
from verify.entry import EXPECTED, bind, conflict

if TYPE_CHECKING:
    from verify.engine.engine import Run
    from verify.result import SubjectResult

SHARDS = 4
TRIES = 250
"""Candidates that minimising one failure may run; all of a shard together may run twice as many."""
_seed: dict[str, int] = {}
_runs: dict[tuple[str, str | None], Run] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of `shards` parts of a subject's campaign.

    Attributes:
        cases, seconds: Budget of the whole campaign; None for the default.
        seed: Of the draws of the whole campaign; None for that of the test run.
        min_cases: Cases of the whole campaign that a verdict HOLDS needs; each shard needs its share.
        case_seconds: Seconds that one small case may take; None for what the subject says, or the usual time.
    """

    spec: str
    number: int
    shards: int = SHARDS
    cases: int | None = None
    seconds: float | None = None
    seed: int | None = None
    min_cases: int = DEFAULT_MIN_CASES
    device: str = "cpu"
    backend: str | None = None
    case_seconds: float | None = None

    @property
    def title(self) -> str:
        """Name for test ids."""
        return f"{self.spec}-shard{self.number + 1}of{self.shards}"


class Violated(AssertionError):
    """The subject violated properties; the message has one section a property."""


class Undecided(RuntimeError):
    """Nothing could be decided, or our own machinery failed."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a test function receives: call it to run the shard.

    Raises:
        Violated: With one section a violated property.
        Undecided: If nothing could be decided, or our own machinery failed on a case.
    """

    shard: Shard = field()

    def __call__(self) -> SubjectResult:
        """Run the shard; return its result if it holds."""
        __tracebackhide__ = True
        result = run_shard(self.shard)
        judge_result(result)
        return result


def default_seed() -> int:
    """Return the seed of this test run: the one that `use_seed` set, else a random one, drawn once."""
    return _seed.setdefault("seed", secrets.randbelow(2**32))


def use_seed(seed: int) -> None:
    """Set the seed of this test run; the plugin hands on the controller's to its workers."""
    _seed["seed"] = seed


def shared_run(device: str, backend: str | None) -> Run:
    """Return this process's open run for a device; `close_runs` ends it."""
    from verify.engine.engine import Run

    key = (device, backend)
    if key not in _runs:
        if not _runs:
            atexit.register(close_runs)
        threads = 1 if os.environ.get("PYTEST_XDIST_WORKER") else None  # else jax may be the user's, too
        config = Config(device=device, backend=backend)  # type: ignore[arg-type]
        _runs[key] = Run(config, threads=threads).__enter__()
    return _runs[key]


def close_runs() -> None:
    """End the ranks of all shared runs."""
    while _runs:
        _, run = _runs.popitem()
        run.__exit__(None, None, None)


def run_shard(shard: Shard) -> SubjectResult:
    """Run the campaign of one shard and return its result.

    Raises:
        Undecided: If this process cannot have our packages, or is one of several that a launcher started.
    """
    __tracebackhide__ = True
    if words := conflict():
        raise Undecided(f"{EXPECTED}{words}.")
    if refused := launched(os.environ):
        raise Undecided(refused)
    bind()
    from verify.config import Budget, Policy
    from verify.engine.floor import Floor
    from verify.engine.seeds import derive

    run = shared_run(shard.device, shard.backend)
    whole = Budget.of(shard.cases, shard.seconds)
    subject = run.subject(
        shard.spec, config=msgspec.structs.replace(run.config, case_seconds=shard.case_seconds)
    )
    return run.campaign(
        subject,
        seed=derive(default_seed() if shard.seed is None else shard.seed, shard.number),
        budget=Budget(
            cases=None if whole.cases is None else -(-whole.cases // shard.shards),
            seconds=None if whole.seconds is None else whole.seconds / shard.shards,
            net=whole.net,
        ),
        policy=Policy(tries=TRIES, tries_total=2 * TRIES),
        floor=Floor(cases=shard.min_cases).of_a_share(shard.shards),
    )


def judge_result(result: SubjectResult) -> None:
    """Raise unless `result` holds.

    Raises:
        Violated: With one section a violated property.
        Undecided: If nothing could be decided, or our own machinery failed on a case.
    """
    from verify.report.summary import summary

    if result.failures:
        texts = (failure.text for failure in result.failures)
        raise Violated("\n\n".join(("", *texts, "\n".join(summary(result)))))
    if result.accounting.internal or result.verdict != "HOLDS":
        raise Undecided("\n".join(("", *summary(result))))


def examine_again(
    text: str, spec: str, *, device: str, backend: str | None, case_seconds: float | None = None
) -> None:
    """Run the case that `text` names on `spec` once, in this process's shared run.

    Raises:
        Violated: With one section a violated property.
        Undecided: If nothing was decided, or our own machinery failed.
    """
    import io

    from verify import errors
    from verify.record.kept_cases import data_folder, find_case
    from verify.report.trial_text import report_trial

    run = shared_run(device, backend)
    case = find_case(text, (data_folder(),))
    subject = run.subject(spec, config=msgspec.structs.replace(run.config, case_seconds=case_seconds))
    trial = run.examiner(subject).examine(case)
    run.keep(trial)
    written = io.StringIO()
    code = report_trial(trial, subject, written, diagnoses=run.parts.diagnoses)
    if code == errors.NOT_MET:
        raise Violated(written.getvalue())
    if code != errors.OK:
        raise Undecided(written.getvalue())
