"""A record: what happened, appended as it happens, as JSON lines; and the folder where cases are kept.

Rules
-----
- `record.jsonl` is a journal (`verify.record.journal`) of runs, each from a line `environment` on. It holds
  one line a trial: of one that failed everything, with the whole observation; of any other the case, its
  place in the campaign, and of each property the counts and the greatest ratio. `verify.record.previous_run`
  reads it.
- What cannot be written ends the recording, never the run: `Record.failed` says why.
- Every failing case is a file of its own, `cases/<id>.json`: in the record, and in the user's data folder, so
  that `replay ID` works without --record.
- Nothing is pickled: a stranger's record is data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from properties.observation import Observation, RankObservation, tensor_to_data
from properties.verdict import Outcome
from verify.events import CampaignEnded, CampaignStarted, Event, FailureFound, FailureMinimised, GroupLost
from verify.record.journal import Journal
from verify.record.kept_cases import keep_case
from verify.record.reading import COUNTS
from verify.record.recall import Place
from verify.strict_json import line, plain
from verify.trial import Trial

SCHEMA = 3
"""Since 2 a trial that did not fail is recorded in short, under `holds`; since 3 a large tensor is kept
folded, not on a sample. What 1 and 2 have is read as well."""
JOURNAL = "record.jsonl"
"""Name of the file in a record's folder."""
MAX_TENSOR_BYTES = 1 << 28
"""Of the tensors of one observation; with base64 and names well below `verify.record.journal.MAX_LINE`."""


class Record:
    """An open record folder; takes trials and events.

    Args:
        folder: Created if it does not exist; runs that are there stay, and another one is appended.
        environment: Facts about this machine, versions and the command, written first; None to call `begin`
            later.

    Attributes:
        journal: The file.
        failed: Why nothing more can be recorded; empty as long as it can.

    Raises:
        OSError: If the folder or the file cannot be written.
        RecordError: If another run is writing it.
    """

    def __init__(self, folder: Path, environment: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.failed = ""
        self.journal = Journal(folder / JOURNAL)
        self._subject = ""
        if environment is not None:
            self.begin(environment)

    def begin(self, environment: dict[str, Any]) -> None:
        """Write what is known of the run.

        Raises:
            OSError: If it cannot be written.
        """
        self.journal.append(_bytes({"kind": "environment", "schema": SCHEMA, **environment}))

    def keep(self, trial: Trial, place: Place | None = None) -> None:
        """Append one trial, with its place in a campaign; a failing one with its whole observation."""
        entry: dict[str, Any] = {
            "kind": "trial",
            "subject": self._subject,
            "id": trial.case.id,
            "case": plain(trial.case),
        }
        if trial.violated or trial.internal or not trial.endings <= {"returned", "raised"}:
            entry |= _whole(trial)
        else:
            entry |= _short(trial)
        if trial.excused:
            entry["excused"] = [{"entry": e.entry, "property": e.property} for e in trial.excused]
        entry |= {"satisfied": trial.satisfied, "seconds": round(trial.seconds, 4)}
        if place is not None:
            entry["place"] = _place(place)
        if trial.violated:
            self._attempt(lambda: keep_case(trial.case, self.folder))
        self._attempt(lambda: self.journal.append(_bytes(entry)))

    def handle(self, event: Event) -> None:
        """Append the events that are not of a single trial; failures and ends are on the disk at once."""
        if isinstance(event, CampaignStarted):
            self._subject = event.subject
        if isinstance(event, CampaignStarted | FailureMinimised | GroupLost | CampaignEnded):
            self._attempt(lambda: self.journal.append(_bytes({"kind": "event", **plain(event)})))
        if isinstance(event, FailureFound | FailureMinimised | CampaignEnded):
            self._attempt(self.journal.sync)

    def close(self) -> None:
        """Close the file, once it is on the disk."""
        self._attempt(self.journal.sync)
        self.journal.close()

    def _attempt(self, *actions: Callable[[], object]) -> None:
        """Do `actions`, unless writing failed before; note why it fails."""
        try:
            for action in actions if not self.failed else ():
                action()
        except OSError as error:
            self.failed = error.strerror or str(error)


def _whole(trial: Trial) -> dict[str, Any]:
    """Return all that a failing trial said."""
    whole: dict[str, Any] = {
        "verdicts": [plain(verdict) for verdict in trial.verdicts],
        "ratios": plain(trial.graded),
        "observation": observation_to_data(trial.observation) if trial.observation else None,
    }
    return {**whole, "internal": trial.internal} if trial.internal else whole


def _short(trial: Trial) -> dict[str, Any]:
    """Return what counts of a trial that did not fail; verdicts that say more than counts are whole."""
    said: dict[str, list[Any]] = {"holds": [], "verdicts": []}
    for verdict in trial.verdicts:
        if verdict.outcome is Outcome.HOLDS and not verdict.reason:
            counts = [plain(getattr(verdict, name)) for name in COUNTS]
            while counts and not counts[-1]:
                counts.pop()
            said["holds"].append([verdict.property, *counts])
        else:
            said["verdicts"].append(plain(verdict))
    return {name: entries for name, entries in said.items() if entries}


def _place(place: Place) -> dict[str, Any]:
    """Return what `place` says beside its defaults, times in milliseconds."""
    usual = Place(role=place.role)
    given = {name: getattr(place, name) for name in Place.__slots__}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in given.items()}
    return {name: value for name, value in rounded.items() if name == "role" or value != getattr(usual, name)}


def _bytes(entry: dict[str, Any]) -> bytes:
    return line(entry).encode("utf-8", "replace")


def observation_to_data(observation: Observation) -> dict[str, Any]:
    """Return the whole `observation` as plain JSON data, tensors in base64.

    Tensors that have more than `MAX_TENSOR_BYTES` together are left out.
    """
    both = (observation, observation.again) if observation.again else (observation,)
    tensors = (tensor for one in both for rank in one.ranks for tensor in rank.tensors.values())
    arrays = (array for tensor in tensors for array in (tensor.array, tensor.positions) if array is not None)
    whole = sum(array.nbytes for array in arrays) <= MAX_TENSOR_BYTES
    ranks, *again = ([_rank_to_data(rank, whole=whole) for rank in one.ranks] for one in both)
    return {"ranks": ranks, "again": {"ranks": again[0], "again": None} if again else None}


def _rank_to_data(rank: RankObservation, *, whole: bool) -> dict[str, Any]:
    tensors = {name: tensor_to_data(tensor) for name, tensor in rank.tensors.items() if whole}
    rest = {name: getattr(rank, name) for name in rank.__struct_fields__ if name != "tensors"}
    return {**plain(rest), "tensors": tensors}
