"""A SPEC: how a user names a subject, and where that is.

| SPEC | subject |
|---|---|
| `local` (a word without a colon) | a built-in of `verify.subjects.builtins` |
| `package.module:factory` | an attribute (dots allowed) of an importable module |
| `./file.py:factory` | an attribute of a file, relative to the folder where the command runs |

Pure but for asking whether the file exists; the parent resolves, a rank loads.
"""

from __future__ import annotations

from pathlib import Path

from verify.errors import SubjectError
from verify.ranks.messages import Target


def resolve(spec: str, *, folder: Path) -> Target:
    """Return where the subject `spec` is; a relative file is sought from `folder`.

    Raises:
        SubjectError: If `spec` has not the form, names no built-in, or names a file that does not exist.
    """
    if ":" not in spec:
        return _builtin(spec, folder)
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute or not all(part.isidentifier() for part in attribute.split(".")):
        raise SubjectError(f"Expected a subject as module:factory or file.py:factory, but got {spec!r}.")
    if place.endswith(".py") or "/" in place:
        file = (folder / Path(place).expanduser()).resolve()
        if not file.is_file():
            raise SubjectError(f"Expected a Python file for the subject {spec!r}, but {file} does not exist.")
        return Target(spec=spec, attribute=attribute, file=str(file))
    if not all(part.isidentifier() for part in place.split(".")):
        raise SubjectError(f"Expected a module name before the colon, but got {place!r} in {spec!r}.")
    return Target(spec=spec, attribute=attribute, module=place)


def _builtin(name: str, folder: Path) -> Target:
    from verify.subjects.builtins import BUILTINS

    if name not in BUILTINS:
        raise SubjectError(
            f"Expected a subject as module:factory, file.py:factory or one of {', '.join(BUILTINS)}, "
            f"but got {name!r}."
        )
    target = resolve(BUILTINS[name].spec, folder=folder)
    return Target(spec=name, attribute=target.attribute, module=target.module, file=target.file)
