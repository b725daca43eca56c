"""The main job on fake parts: at most 25 lines where all is as expected, and everything of what is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from properties.case import Case
from tests.verify.fakes import FakeRanks, Rules, ended, examiner, returned
from verify.cli.main_job import CONTROL_BUDGET, main_job
from verify.config import DEFAULT_BUDGET, DEFAULT_POLICY, Budget, Config, Policy
from verify.engine.campaign import Campaign
from verify.errors import NOT_MET, OK
from verify.events import GroupLost
from verify.known.entries import parse
from verify.report.log import Lines
from verify.result import SubjectResult
from verify.subject import Subject
from verify.subjects.builtins import BUILTINS

KNOWN = parse(
    "\n".join(
        f"""
[[known]]
id = "N{number}"
reason = "Reason {number}."
case = '{{"batches":[{number},0]}}'
when = [{{fact = "empty_ranks", at_least = 1}}]
properties = ["ending"]
endings = ["died"]
"""
        for number in range(1, 29)
    )
)
MOST = 25


def apart(case: Case) -> bool:
    """Return whether each rank's own moments are not those of the group."""
    return len(case.batches) > 1


class FakeRun:
    """A run whose systems break the rules that are given for them; it tells what a real one does."""

    def __init__(self, rules: dict[str, Rules], stream: io.StringIO, **detail: Any) -> None:
        self.config = Config(seed=1)
        self.budgets: dict[str, Any] = {}
        self._rules = rules
        self._lines = Lines(stream, **detail)

    def subject(self, spec: str, *, expectation: str, config: Config) -> Subject:
        assert config.world_sizes == "1,2,3,4,5,8"
        known = KNOWN if spec == "torch" else ()
        return Subject(spec=spec, label=spec, expectation=expectation, known=known)

    def campaign(
        self, subject: Subject, *, budget: Budget = DEFAULT_BUDGET, policy: Policy = DEFAULT_POLICY
    ) -> SubjectResult:
        self.budgets[subject.spec] = budget

        def behave(case: Case) -> Any:
            if 0 in case.batches and subject.known:
                lost = GroupLost(subject=subject.spec, world_size=len(case.batches), reason="died")
                self._lines.handle(lost)
                return ended(case, "died")
            return returned(case)

        return Campaign(
            examiner=examiner(self._rules[subject.spec], ranks=FakeRanks(behave), subject=subject),
            budget=Budget(cases=40),
            seed=1,
            emit=self._lines.handle,
            policy=policy,
        ).run()


def rules(**broken: Callable[[Case], bool]) -> dict[str, Rules]:
    """Return the rules of the built-in systems; `broken` are those that one breaks beside what it must."""
    numbers: Rules = {"forward": lambda case: False, "grad_input": lambda case: False}
    found = {name: dict(numbers) for name in BUILTINS}
    found["local"] |= {"forward": apart, "grad_input": apart}
    for name, rule in broken.items():
        found[name]["forward"] = rule
    return dict(found)


def done(given: dict[str, Rules], *, known: bool = False, **detail: Any) -> tuple[int, str, FakeRun]:
    stream = io.StringIO()
    run = FakeRun(given, stream, **{"detail": "unexpected", **detail})
    code = main_job(run, stream, known=known)  # type: ignore[arg-type]
    return code, stream.getvalue(), run


def test_the_first_screen_is_a_line_a_system_a_table_and_a_sentence() -> None:
    code, text, run = done(rules())
    assert code == OK, text
    assert text.count("\n") <= MOST - 2  # a line of versions comes before, and the command that make shows
    assert "VIOLATED forward" not in text
    assert "lost" not in text
    assert text.splitlines()[0] == "local: 40 cases; the control, which must be reported"
    assert text.splitlines()[-1].startswith(
        "The broken one was caught, the right one passed and torch has 28 known"
    )
    assert (run.budgets["local"], run.budgets["aggregated"]) == (CONTROL_BUDGET, DEFAULT_BUDGET)


def test_known_discrepancies_are_listed_when_asked_for() -> None:
    code, text, _ = done(rules(), known=True)
    assert code == OK
    assert text.count("Reason ") == 28
    assert "    N7: " in text


@pytest.mark.parametrize("system", ["aggregated", "torch"])
def test_a_system_that_fails_its_expectation_is_told_in_full(system: str) -> None:
    code, text, _ = done(rules(**{system: lambda case: case.channels > 3}))
    assert code == NOT_MET
    assert f"{system}: VIOLATED (forward)" in text
    assert "VIOLATED forward: the output is farther" in text
    assert "Reproduce with" in text
    assert text.splitlines()[-1] == f"Not met: {system} is VIOLATED, expected HOLDS; see above."


def test_a_control_that_is_not_caught_is_not_met() -> None:
    code, text, _ = done(rules(local=lambda case: False) | {"local": rules()["aggregated"]})
    assert code == NOT_MET
    assert "Not met: local is HOLDS, expected VIOLATED" in text
