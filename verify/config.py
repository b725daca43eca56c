"""What the user asked for: one struct, made by the parser, stored in the record, read by the engine.

Rules
-----
- A verdict does not depend on the machine's speed: budgets are cases, and tries of a minimising. Seconds are
  a budget only where the user gives them; else they are a net, and what it cuts short says so.
- What is stored is what the command line has, as texts: a record of an older version is read as it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from verify.errors import UsageError

SAFETY_NET = 1800.0
"""Seconds after which a campaign with the default budget is cut short; it says so, and decides nothing."""
DEFAULT_MIN_CASES = 20
"""Cases that a verdict HOLDS stands on at least."""
LEAST_TRIES = 40
"""Candidates that each minimising may run, however many the others took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a campaign draws.

    Attributes:
        cases, seconds: Whichever ends first; None for no limit of that kind. The seconds are those of the
            whole campaign, minimising included.
        net: Seconds after which it is cut short before its budget has ended; None for never.
    """

    cases: int | None = 500
    seconds: float | None = None
    net: float | None = None

    @classmethod
    def of(cls, cases: int | None, seconds: float | None) -> Budget:
        """Return the default budget unless one of the limits is given: that one is then the whole budget."""
        return DEFAULT_BUDGET if cases is None and seconds is None else cls(cases=cases, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a campaign treats failures.

    Attributes:
        fail_fast: End at the first failing case, once it is minimised.
        tries: Candidates that one minimising may run.
        tries_total: Candidates of all together; each still gets `LEAST_TRIES`, if `tries` is not less.
        minimise_seconds, minimise_total: Nets, where a case takes long: seconds of one minimising, and of all
            together.
        stored: Run the stored case of each known discrepancy first.
        stop_after_violating: Properties that are minimised first; once all were violated, drawing ends.
            Empty: never.
    """

    fail_fast: bool = False
    tries: int = 400
    tries_total: int = 1200
    minimise_seconds: float = 120.0
    minimise_total: float = 300.0
    stored: bool = True
    stop_after_violating: frozenset[str] = frozenset()

    def tries_left(self, used: int) -> int:
        """Return how many candidates the next minimising may run, after others ran `used`."""
        return min(self.tries, max(LEAST_TRIES, self.tries_total - used))

    def seconds_left(self, used: float) -> float:
        """Return after how many seconds the net ends the next minimising, after others took `used`."""
        return min(self.minimise_seconds, max(1.0, self.minimise_total - used))


DEFAULT_BUDGET = Budget(net=SAFETY_NET)
DEFAULT_POLICY = Policy()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is judged, and how, as the options of the command line say it.

    Attributes:
        subject: SPECs; none for the three built-in systems.
        device, backend: Where the ranks run; backend None for the device's default.
        world_sizes: Numbers of ranks, as in `2,4`; None for the domain's.
        cases, seconds: The budget of each campaign; None and None for the default.
        seed: Of the draws.
        grade, contract, domain: `key=value` texts and a grade that replace what a factory promises.
        properties: Ids of those to judge; None for all.
        fail_fast: End at the first failing case, once it is minimised.
        min_cases: Cases that a verdict HOLDS needs; None for the default.
        case_seconds: Seconds that one small case may take on the ranks; None for the factory's, or the usual.

    Raises:
        UsageError: If a number is out of its range.
    """

    subject: tuple[str, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["gloo", "nccl"] | None = None
    world_sizes: str | None = None
    cases: int | None = None
    seconds: float | None = None
    seed: int = 0
    grade: Literal["A", "B", "C"] | None = None
    contract: tuple[str, ...] = ()
    properties: tuple[str, ...] | None = None
    domain: tuple[str, ...] = ()
    fail_fast: bool = False
    min_cases: int | None = None
    case_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, below in (("cases", 2**63), ("min_cases", 2**63), ("seconds", 1e9), ("case_seconds", 1e6)):
            value = getattr(self, name)
            if value is not None and not 0 < value < below:
                raise UsageError(f"Expected {name} above 0 and below {below:g}, but got {name}={value}.")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"Expected a seed from 0 to 2^64 - 1, but got seed={self.seed}.")

    @property
    def budget(self) -> Budget:
        """How long each campaign draws."""
        return Budget.of(self.cases, self.seconds)

    @property
    def domain_settings(self) -> dict[str, str]:
        """Keys of the domain that are set, `world_sizes` by its own option, too."""
        settings = pairs(self.domain, "--domain")
        return settings if self.world_sizes is None else {**settings, "world_sizes": self.world_sizes}

    @property
    def contract_settings(self) -> dict[str, str]:
        """Keys of the contract that are set."""
        return pairs(self.contract, "--contract")

    @property
    def replay_options(self) -> tuple[str, ...]:
        """The options that a replay needs to judge alike, quoted for a shell; it needs no domain."""
        parts = [f"--contract {shlex.quote(text)}" for text in self.contract]
        if self.grade:
            parts.append(f"--grade {self.grade}")
        if self.case_seconds:
            parts.append(f"--case-seconds {self.case_seconds:g}")
        return tuple(parts)


DEFAULT_CONFIG = Config()


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return `key=value` texts as a dictionary.

    Raises:
        UsageError: If one has no `=`, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"Expected {option} key=value, but got {text!r}.")
        if key in found:
            raise UsageError(f"Expected each key of {option} once, but got {key!r} twice.")
        found[key] = value
    return found


def setting_texts(settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return settings of a domain or a contract as `key=value` texts, the counterpart of `pairs`."""
    return tuple(f"{key}={value}" for key, value in settings.items())
