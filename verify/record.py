"""A record: what happened, appended as it happens, as JSON lines; and the folder where cases are kept.

Rules
-----
- `record.jsonl` holds one line a trial: the case, its verdicts with their ratios; if it failed, the whole
  observation. A line is written in one piece, so that an interrupted record is still readable up to its end.
- Every failing case is a file of its own, `cases/<id>.json`: in the record, and in the user's data folder, so
  that `replay ID` works without --record.
- Nothing is pickled: a stranger's record is data.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from properties.case import MAX_JSON_BYTES, Case, CaseError, decode, encode
from properties.observation import Observation, RankObservation, tensor_to_data
from verify.events import CampaignEnded, CampaignStarted, Event, FailureMinimised, GroupLost
from verify.memory import Place
from verify.plain import line, plain
from verify.trial import Trial

DATA_FOLDER = "SYNCBN_VERIFY_DATA"
"""Environment variable that names another data folder."""
_ID_DIGITS = frozenset("0123456789abcdef")


def data_folder() -> Path:
    """Return the user's data folder of this program."""
    return Path(os.environ.get(DATA_FOLDER) or platformdirs.user_data_path("syncbn-verify"))


def keep_case(case: Case, folder: Path) -> Path:
    """Write `case` to `folder`/cases/<id>.json, in one piece, and return the path."""
    target = folder / "cases" / f"{case.id}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file:
        file.write(encode(case) + b"\n")
    Path(file.name).replace(target)
    return target


def find_case(text: str, folders: tuple[Path, ...]) -> Case:
    """Return the case that `text` names: an id looked up in `folders`, a file, or the JSON itself.

    Raises:
        CaseError: If there is none, or it is not a case.
    """
    if text.lstrip().startswith("{"):
        return decode(text)
    if _ID_DIGITS.issuperset(text) and 4 <= len(text) <= 12:
        found = sorted({path for folder in folders for path in (folder / "cases").glob(f"{text}*.json")})
        if len({path.name for path in found}) > 1:
            raise CaseError(
                f"Expected one case, but the id {text!r} begins those of {len(found)}; give more digits."
            )
        if found:
            return _read(found[0])
    path = Path(text)
    if path.is_file():
        return _read(path)
    looked = ", ".join(str(folder) for folder in folders)
    raise CaseError(f"Expected the id of a kept case, a file or JSON, but got {text!r}; looked in {looked}.")


def _read(path: Path) -> Case:
    with path.open("rb") as file:
        return decode(file.read(MAX_JSON_BYTES + 1))


class Record:
    """An open record folder; takes trials and events.

    Args:
        folder: Created if it does not exist; a record that is there is continued.
        environment: Facts about this machine, versions and the command, written first.
    """

    def __init__(self, folder: Path, environment: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = (folder / "record.jsonl").open("a", encoding="utf-8")
        self._write({"kind": "environment", **environment})

    def keep(self, trial: Trial, place: Place | None = None) -> None:
        """Append one trial, with its place in a campaign; a failing one with its whole observation."""
        entry: dict[str, Any] = {
            "kind": "trial",
            "id": trial.case.id,
            "case": plain(trial.case),
            "verdicts": [plain(verdict) for verdict in trial.verdicts],
            "excused": [{"entry": e.entry, "property": e.property} for e in trial.excused],
            "satisfied": trial.satisfied,
            "ratios": plain(trial.graded),
            "seconds": trial.seconds,
        }
        if place is not None:
            entry["place"] = plain(place)
        if trial.internal:
            entry["internal"] = trial.internal
        if trial.violated or trial.internal or trial.excused:
            entry["observation"] = observation_to_data(trial.observation) if trial.observation else None
        if trial.violated:
            keep_case(trial.case, self.folder)
        self._write(entry)

    def handle(self, event: Event) -> None:
        """Append the events that are not of a single trial."""
        if isinstance(event, CampaignStarted | FailureMinimised | GroupLost | CampaignEnded):
            self._write({"kind": "event", **plain(event)})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(line(entry) + "\n")
        self._file.flush()


def observation_to_data(observation: Observation) -> dict[str, Any]:
    """Return the whole `observation` as plain JSON data, tensors in base64."""
    return {
        "ranks": [_rank_to_data(rank) for rank in observation.ranks],
        "again": observation_to_data(observation.again) if observation.again else None,
    }


def _rank_to_data(rank: RankObservation) -> dict[str, Any]:
    tensors = {name: tensor_to_data(tensor) for name, tensor in rank.tensors.items()}
    rest = {name: getattr(rank, name) for name in rank.__struct_fields__ if name != "tensors"}
    return {**plain(rest), "tensors": tensors}
