"""Kept cases: the folder where failing cases are kept, each in a file by its id, and found again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

from properties.case import MAX_JSON_BYTES, Case, decode, encode
from properties.case_checks import CaseError, shorten

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
        part = Path(file.name)
        try:
            file.write(encode(case) + b"\n")
            file.flush()
        except BaseException:
            part.unlink()
            raise
    part.replace(target)
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
        found = [path for path in found if path.is_file() and not path.is_symlink()]
        if len({path.name for path in found}) > 1:
            raise CaseError(
                f"Expected one case, but the id {text!r} begins those of {len(found)}; give more digits."
            )
        if found:
            return read_case(found[0])
    try:
        if Path(text).is_file():
            return read_case(Path(text))
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise CaseError(f"Expected a case, but {shorten(text)} cannot be read: {error.strerror}.") from None
    looked = ", ".join(str(folder) for folder in folders)
    raise CaseError(
        f"Expected the id of a kept case, a file or JSON, but got {shorten(text)}; looked in {looked}."
    )


def read_case(path: Path) -> Case:
    """Return the case of a file.

    Raises:
        CaseError: If it cannot be read, or is not a case.
    """
    try:
        with path.open("rb") as file:
            return decode(file.read(MAX_JSON_BYTES + 1))
    except OSError as error:
        raise CaseError(f"Expected a case, but {path} cannot be read: {error.strerror}.") from None
