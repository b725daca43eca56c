"""Data from strangers: whatever a mutation makes of it, it is valid or refused in one line, and soon.

`SYNCBN_VERIFY_FUZZ=100000` sets the number of mutations of all kinds together (2000).
"""

from __future__ import annotations

import json
import os
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from properties.case import Case, decode, encode
from properties.case_checks import CaseError
from properties.domain import Domain, DomainError
from properties.generation.strategies import random_case
from tests.hostile.mutation import restructured, spoilt
from tests.verify.fakes import FakeRanks, examiner, returned, tensor
from verify import errors
from verify.cli.main import main
from verify.cli.parser import parse
from verify.cli.resume import merged
from verify.cli.run import config_from
from verify.config import Budget, Policy
from verify.engine.campaign import Campaign
from verify.engine.tally import Tally
from verify.errors import UsageError
from verify.known.entries import KnownError, extent
from verify.known.entries import parse as parse_known
from verify.record.journal import RecordError
from verify.record.kept_cases import find_case
from verify.record.previous_run import PreviousRun, read
from verify.record.writing import Record
from verify.report.explain import Occurrence, explain
from verify.report.json_report import subject_data
from verify.report.summary import summary
from verify.strict_json import plain
from verify.subject import Subject

MUTATIONS = int(os.environ.get("SYNCBN_VERIFY_FUZZ", "2000"))
SHARES = {"case": 0.5, "record": 0.3, "known": 0.2}
MOST_SECONDS = 0.05
"""Of processor time for one text; what takes longer is tried twice more, since a collector may have run."""
KNOWN = Path("verify/subjects/known/torch.toml")
SUBJECT = Subject(spec="fake:Subject", label="fake:Subject")
LINE = ["run", "--subject", "fake:Subject", "--seed", "1", "--cases", "4", "--record", "r"]


def count(what: str) -> int:
    return max(1, int(MUTATIONS * SHARES[what]))


def is_one_line(message: str) -> bool:
    return "\n" not in message and message.isprintable() and 0 < len(message) < 1500


def judge(
    text: bytes,
    read_it: Callable[[bytes], object],
    refusal: type[Exception] | tuple[type[Exception], ...],
    seen: Counter[str],
) -> None:
    """Read `text`; anything but a value or a refusal of one line fails, and so does taking long."""
    taken = []
    for _ in range(3):
        began, message = time.thread_time(), None
        try:
            read_it(text)
        except refusal as error:
            message = str(error)
        taken.append(time.thread_time() - began)
        assert message is None or is_one_line(message), (text[:500], message)
        if taken[-1] < MOST_SECONDS:
            seen["valid" if message is None else "refused"] += 1
            return
    pytest.fail(f"took {min(taken):.3f} s: {text[:500]!r}")


def cases() -> tuple[bytes, ...]:
    """Return cases as canonical JSON, and with all their fields."""
    source = random.Random(1)
    drawn = [random_case(source, Domain()) for _ in range(40)]
    return (*(encode(case) for case in drawn), *(msgspec.json.encode(plain(case)) for case in drawn), b"{}")


def test_a_mutated_case_is_a_case_or_refused() -> None:
    def read_it(text: bytes) -> None:
        case = decode(text)
        assert decode(encode(case)) == case
        assert case.id == decode(encode(case)).id
        assert all(case.count_of(rank) >= 0 and case.group_of(rank) for rank in range(case.world_size))

    source, corpus, seen = random.Random(2), cases(), Counter[str]()
    for number in range(count("case")):
        text = source.choice(corpus)
        text = restructured(source, text) if number % 2 else spoilt(source, text, corpus)
        judge(text, read_it, CaseError, seen)
    assert min(seen["valid"], seen["refused"]) > count("case") / 50, seen


def test_what_is_typed_instead_of_a_case_is_a_case_or_refused(tmp_path: Path) -> None:
    """As `replay` gets it: JSON, ids, names of files, with what a shell makes of bytes that are no text."""

    def read_it(text: bytes) -> None:
        find_case(os.fsdecode(text), (tmp_path,))

    (tmp_path / "cases").mkdir()
    source, seen = random.Random(3), Counter[str]()
    corpus = (
        *cases(),
        b"0123456789ab",
        b"abcd",
        b"x" * 300,
        b"../" * 2000,
        b"/proc/self/mem",
        b"/root/",
        b"*",
    )
    for _ in range(count("case") // 10):
        judge(spoilt(source, source.choice(corpus), corpus), read_it, CaseError, seen)
    assert seen["refused"], seen


def test_a_mutated_file_of_known_discrepancies_is_one_or_refused() -> None:
    drawn = [decode(text) for text in cases()[:5]]

    def read_it(text: bytes) -> None:
        for entry in parse_known(text.decode("utf-8", "replace")):
            for case in (entry.case, *drawn):
                extent(entry, case)

    tables = ("[[known]]" + part for part in KNOWN.read_text("utf-8").split("[[known]]")[1:])
    corpus = tuple(table.encode() for table in tables)
    source, seen = random.Random(4), Counter[str]()
    for _ in range(count("known")):
        judge(spoilt(source, source.choice(corpus), corpus), read_it, KnownError, seen)
    assert min(seen["valid"], seen["refused"]) > count("known") / 50, seen


def recorded_lines(folder: Path) -> tuple[bytes, ...]:
    """Return the lines of the record of a small run that fails, of which some are minimal cases."""

    def behave(case: Case) -> object:
        observation = returned(case)
        filled = [
            msgspec.structs.replace(rank, tensors={"output.0": tensor([[1.5, float("nan")]])}, exit="code 3")
            for rank in observation.ranks
        ]
        return msgspec.structs.replace(observation, ranks=tuple(filled))

    record = Record(folder, {"versions": {"torch": "2"}, "arguments": plain(config_from(parse(LINE)))})
    Campaign(
        examiner=examiner({"forward": lambda case: case.channels > 1}, ranks=FakeRanks(behave)),  # type: ignore[arg-type]
        budget=Budget(cases=4, seconds=None),
        seed=2,
        emit=record.handle,
        keep=record.keep,
        policy=Policy(tries=100),
    ).run()
    record.close()
    return tuple((folder / "record.jsonl").read_bytes().splitlines())


def uses(past: PreviousRun) -> None:
    """Do with what was read what a run that goes on does with it."""
    words = Namespace(**vars(parse([*LINE[:1], *LINE[-2:]])), words=["run", "--record", "r"])
    config_from(merged(words, past.opening.arguments))
    tally = Tally()
    for spec in ("fake:Subject", ""):
        memory = past.memory(spec)
        while recalled := memory.next():
            tally.add(recalled.trial)
            for name in recalled.trial.violated:
                explain(
                    Occurrence(
                        property_id=name,
                        trial=recalled.trial,
                        subject=SUBJECT,
                        minimal=False,
                        repeats=recalled.place.repeats,
                    )
                )
            assert recalled.trial.failures or not recalled.trial.violated
    tally.properties()
    ended = past.result(SUBJECT, Budget(cases=4, seconds=None))
    if ended:
        assert list(summary(ended[1]))
        json.dumps(subject_data(ended[1]), allow_nan=False)


def mutants(source: random.Random, lines: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield records of which one line is restructured, or any bytes are spoilt."""
    whole = b"\n".join(lines) + b"\n"
    while True:
        index = source.randrange(len(lines))
        changed = restructured(source, lines[index])
        yield b"\n".join((*lines[:index], changed, *lines[index + 1 :])) + b"\n"
        yield spoilt(source, whole, lines)


def test_a_mutated_record_goes_on_or_is_refused(tmp_path: Path) -> None:
    def read_it(text: bytes) -> None:
        path.write_bytes(text)
        record = Record(tmp_path)
        try:
            if past := read(record.journal):
                uses(past)
        finally:
            record.journal.close()

    lines = recorded_lines(tmp_path)
    assert sum(b'"observation"' in line for line in lines) >= 2
    path = tmp_path / "record.jsonl"
    source, seen = random.Random(5), Counter[str]()
    for text, _ in zip(mutants(source, lines), range(count("record")), strict=False):
        judge(text, read_it, (UsageError, DomainError), seen)
    assert min(seen["valid"], seen["refused"]) > count("record") / 50, seen


def readable(folder: Path) -> bool:
    record = Record(folder)
    try:
        read(record.journal)
    except RecordError:
        return False
    finally:
        record.journal.close()
    return True


def test_the_program_refuses_mutated_files_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is refused: the rest would start ranks."""
    lines, corpus, source = recorded_lines(tmp_path), cases(), random.Random(6)
    case, record, refused = tmp_path / "case.json", tmp_path / "record.jsonl", Counter[str]()
    for text, _ in zip(mutants(source, lines), range(60), strict=False):
        record.write_bytes(text)
        if not readable(tmp_path):
            refused["run"] += 1
            assert main(["run", "--record", str(tmp_path), "--resume"]) == errors.USAGE
            assert is_one_line(capsys.readouterr().err.rstrip("\n"))
        spoilt_case = spoilt(source, source.choice(corpus), corpus)
        try:
            decode(spoilt_case)
        except CaseError:
            refused["replay"] += 1
            case.write_bytes(spoilt_case)
            assert main(["replay", str(case), "--subject", "local"]) == errors.USAGE
            assert is_one_line(capsys.readouterr().err.rstrip("\n"))
    assert min(refused.values()) > 10, refused


def test_a_kept_case_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("{}", encoding="utf-8")
    (tmp_path / "cases" / "0123456789ab.json").symlink_to(secret)
    os.mkfifo(tmp_path / "cases" / "abcdefabcdef.json")
    for name in ("0123456789ab", "abcdefabcdef"):
        with pytest.raises(CaseError, match="looked in"):
            find_case(name, (tmp_path,))
