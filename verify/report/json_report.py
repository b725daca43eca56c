"""The JSON document: one object for a whole run, with a schema number.

    {"schema": 1, "environment", "command", "seed", "subjects": [{"subject", "expectation",
     "domain", "excluded", "contract", "verdict", "grade", "cases", "seconds", "undecided_elements",
     "blind_elements", "known", "properties", "failures", "accounting", "stands_on", "floor", "lacking"}]}

`stands_on` says on how many cases a property was decided, in how many of these ranks shared a process group,
how many had so many ranks, and which properties were decided; `floor` how many cases a verdict HOLDS needs;
`lacking` why it is UNDECIDED although nothing was violated.

Non-finite numbers are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from verify.events import CampaignEnded, Event
from verify.result import Failure, SubjectResult
from verify.strict_json import plain

SCHEMA = 1


class Document:
    """Collects results, and writes them to `path` each time one is complete.

    Args:
        path: The file to write; replaced if it exists, by a whole document or not at all.
        environment: As `verify.environment` tells it.
        command: The command line.
        seed: Of the run.

    Attributes:
        failed: Why the last result could not be written; empty if it was.

    Raises:
        OSError: If it cannot be written to begin with.
    """

    def __init__(self, path: Path, *, environment: dict[str, Any], command: list[str], seed: int) -> None:
        self._path = path
        self._head = {"schema": SCHEMA, "environment": environment, "command": command, "seed": seed}
        self._subjects: list[dict[str, Any]] = []
        self.failed = ""
        self._write()

    def handle(self, event: Event) -> None:
        """Take one event; only results matter."""
        if isinstance(event, CampaignEnded):
            self._subjects.append(subject_data(event.result))
            try:
                self._write()
                self.failed = ""
            except OSError as error:  # the other reports must go on
                self.failed = f"{self._path}: {error.strerror or error}"

    def _write(self) -> None:
        document = {**self._head, "subjects": self._subjects}
        _write_whole(self._path, json.dumps(document, allow_nan=False, indent=1) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; a regular file is the old one until the new one is whole."""
    if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout, a pipe
        path.write_text(text, encoding="utf-8")
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def subject_data(result: SubjectResult) -> dict[str, Any]:
    """Return one result as the document has it."""
    return {
        "subject": result.subject,
        "expectation": result.expectation,
        "domain": plain(result.domain),
        "excluded": result.excluded,
        "contract": plain(result.contract),
        "verdict": result.verdict,
        "grade": result.grade,
        "cases": result.accounting.cases,
        "seconds": result.seconds,
        "undecided_elements": result.accounting.undecided,
        "blind_elements": result.accounting.blind,
        "known": [{"id": known.id, "state": known.state} for known in result.known],
        "properties": {
            name: {
                "holds": found.holds,
                "violated": found.violated,
                "undecided": found.undecided,
                "max_ratio": plain(found.max_ratio),
            }
            for name, found in result.properties.items()
        },
        "failures": [_failure(failure) for failure in result.failures],
        "accounting": {
            **plain(result.accounting),
            "required_grade": result.required,
            **plain(result.pace),
            "stopped": result.stopped,
        },
        "stands_on": plain(result.stands_on),
        "floor": result.floor,
        "lacking": result.lacking,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    found = failure.discrepancy
    return {
        "property": failure.property,
        "case": plain(failure.case),
        "minimised": failure.minimised,
        "quantity": found.quantity,
        "rank": found.rank,
        "index": list(found.index),
        "observed": plain(found.observed),
        "expected": plain(found.expected),
        "bound": plain(found.bound),
        "ratio": plain(found.ratio),
        "resembles": list(failure.resembles),
        "stage": failure.stage,
        "convention": failure.convention,
        "cases": failure.cases,
        "when": failure.history.when,
        "holds": list(failure.history.holds),
        "ending": found.ending,
    }
