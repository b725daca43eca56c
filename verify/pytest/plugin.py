"""The pytest plugin: `--subject SPEC` runs a subject's campaign as items, `--case ID` replays one case.

`verify.entry` has the options, and registers this module where --subject is given: other test runs have
nothing of it. Light: importing it imports neither torch, jax nor hypothesis; an item does when it runs. With
--subject and no paths on the command line only the subject's items run, so that the reproduce line of a
failure does just that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verify.config import DEFAULT_MIN_CASES
from verify.engine.launchers import launched
from verify.entry import EXPECTED, bind, conflict
from verify.environment import backend_words, one_line
from verify.pytest.shard import SHARDS, Check, Shard, Undecided, Violated


def pytest_configure(config: pytest.Config) -> None:
    """Fix what all workers of a distributed run must agree on: whether other tests run."""
    option = config.option
    if refused := launched(os.environ):
        raise pytest.UsageError(refused)
    if not hasattr(option, "verify_alone"):  # workers receive the controller's options, this one included
        paths_given = config.args_source is pytest.Config.ArgsSource.ARGS
        option.verify_alone = not paths_given
    if getattr(option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        _open_zygote(config)


def _open_zygote(config: pytest.Config) -> None:
    """Have the workers' servers of ranks forked from one process, which imports torch once for all."""
    from verify.ranks.zygote import VARIABLE, Zygote

    if VARIABLE not in os.environ:
        config.add_cleanup(Zygote().__enter__().close)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name subject, versions, device and backend."""
    option = config.option
    backend = backend_words(option.verify_device, option.verify_backend)
    where = one_line(device=option.verify_device, backend=backend)
    return [where, f"subjects: {', '.join(option.subject)}; seed {option.verify_seed}"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave other tests alone when only a subject was asked for."""
    del collection_path
    return True if config.option.verify_alone else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the items of the subjects asked for, unless a test file has brought a package of our name along."""
    collector = Subjects.from_parent(session, name="syncbn-verify", nodeid="syncbn-verify")
    if words := conflict():
        refused = f"{EXPECTED}{words}; run the subject without those tests."
        if not hasattr(session.config, "workerinput"):
            raise pytest.UsageError(refused)
        # A worker of pytest-xdist cannot end the session with a message of its own: an item can.
        items[:] = [Refused.from_parent(collector, name="packages", refused=refused)]
        return
    bind()
    items.extend(collector.collect())


class Subjects(pytest.Collector):
    """Collects the items of all subjects on the command line."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield one item a subject and shard, or one a subject and case."""
        option = self.config.option
        for spec in dict.fromkeys(option.subject):
            if option.case is not None:
                yield CaseItem.from_parent(
                    self, name=f"{spec}-case-{option.case[:12]}", spec=spec, case=option.case
                )
                continue
            for number in range(SHARDS):
                shard = Shard(
                    spec=spec,
                    number=number,
                    cases=option.verify_cases,
                    seed=option.verify_seed,
                    min_cases=option.verify_min_cases or DEFAULT_MIN_CASES,
                    device=option.verify_device,
                    backend=option.verify_backend,
                    case_seconds=option.verify_case_seconds,
                )
                yield ShardItem.from_parent(self, name=shard.title, shard=shard)


class _Item(pytest.Item):
    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **more: Any) -> Any:
        """Show the message alone where it says everything."""
        if isinstance(excinfo.value, Violated | Undecided):
            return str(excinfo.value)
        from properties.case_checks import CaseError
        from properties.domain import DomainError
        from verify.errors import SubjectError

        if isinstance(excinfo.value, CaseError | DomainError | SubjectError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **more)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item in reports."""
        return self.config.rootpath, None, f"syncbn-verify {self.name}"


class Refused(_Item):
    """What stands in place of all tests where ours cannot run."""

    def __init__(self, *, refused: str, **more: Any) -> None:
        super().__init__(**more)
        self._refused = refused

    def runtest(self) -> None:
        """Fail."""
        raise Undecided(self._refused)


class ShardItem(_Item):
    """One shard of a subject's campaign; it judges all properties."""

    def __init__(self, *, shard: Shard, **more: Any) -> None:
        super().__init__(**more)
        self._check = Check(shard)

    def runtest(self) -> None:
        """Run the shard."""
        self._check()


class CaseItem(_Item):
    """One case of a subject."""

    def __init__(self, *, spec: str, case: str, **more: Any) -> None:
        super().__init__(**more)
        self._spec, self._case = spec, case

    def runtest(self) -> None:
        """Run the case once, and fail with one section a violated property."""
        from verify.pytest.shard import examine_again

        option = self.config.option
        examine_again(
            self._case,
            self._spec,
            device=option.verify_device,
            backend=option.verify_backend,
            case_seconds=option.verify_case_seconds,
        )
