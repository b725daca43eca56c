"""Loading: from a target to the subject's factory and its description, inside a rank."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from verify.entry import PACKAGES
from verify.errors import SubjectError
from verify.ranks.messages import Description, Target

Factory = Callable[..., Any]
_DEFAULTS: dict[str, Any] = {
    "eps": 1e-5,
    "momentum": 0.1,
    "affine": True,
    "track_running_stats": True,
    "process_group": None,
    "device": None,
    "dtype": None,
    "bias": True,
}
KEYWORDS = tuple(_DEFAULTS)
_NOT_TAKEN = re.compile(
    r"unexpected keyword argument '(\w+)'|multiple values for (?:keyword )?argument '(\w+)'"
    r"|'(\w+)' is an invalid keyword argument"
)
_CONVERTER = "convert_sync_batchnorm"


def load(target: Target) -> tuple[Factory, Description]:
    """Return the factory at `target` and what can be said of it.

    Raises:
        SubjectError: If it cannot be imported, is not there, is not callable or promises no plain data.
    """
    module = _from_file(target) if target.file else _from_name(target)
    found: Any = module
    for part in target.attribute.split("."):
        if not hasattr(found, part):
            raise SubjectError(_missing(target, found, part))
        found = getattr(found, part)
    if not callable(found):
        raise SubjectError(
            f"Expected {target.attribute} of {_place(target)} to be callable, "
            f"but it is of type {type(found).__name__}."
        )
    return found, _describe(target, found, module)


def _from_name(target: Target) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        if error.name is not None and (
            target.module == error.name or target.module.startswith(error.name + ".")
        ):
            raise SubjectError(
                f"Expected a module {target.module!r} for the subject {target.spec!r}, but there is no "
                f"{error.name!r} on the path; a file is given as ./{error.name.split('.')[-1]}.py:factory."
            ) from None
        raise SubjectError(_import_failed(target, error)) from error
    except BaseException as error:
        raise SubjectError(_import_failed(target, error)) from error


def _from_file(target: Target) -> ModuleType:
    file = Path(target.file)
    name = f"{file.stem}_{hashlib.sha256(target.file.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SubjectError(
            f"Expected a Python file for the subject {target.spec!r}, but got {target.file!r}."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise SubjectError(_import_failed(target, error)) from error
    return module


def _place(target: Target) -> str:
    return target.file or f"module {target.module!r}"


def _import_failed(target: Target, error: BaseException) -> str:
    lines = str(error).splitlines()
    wanted = str(getattr(error, "name", None) or "").partition(".")[0]
    ours = f"; `{wanted}` is a package of syncbn-verify here" if wanted in PACKAGES else ""
    return (
        f"Expected to import {_place(target)} for the subject {target.spec!r}, but it raised "
        f"{type(error).__name__}{': ' + lines[0] if lines else ''}{ours}."
    )


def _missing(target: Target, owner: object, part: str) -> str:
    near = difflib.get_close_matches(part, [name for name in dir(owner) if not name.startswith("_")], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"Expected an attribute {target.attribute!r} in {_place(target)}, but there is no {part!r}{hint}"


def _describe(target: Target, factory: Factory, module: ModuleType) -> Description:
    try:
        promise = getattr(factory, "syncbn_verify", {})
        data = msgspec.json.decode(msgspec.json.encode(promise))
    except Exception as error:
        raise SubjectError(
            f"Expected plain data in {target.attribute}.syncbn_verify, but it is not JSON: {error}."
        ) from None
    if not isinstance(data, dict):
        raise SubjectError(
            f"Expected {target.attribute}.syncbn_verify to be a dictionary, but got {promise!r}."
        )
    name = getattr(factory, "__qualname__", target.attribute)
    return Description(
        spec=target.spec,
        name=f"{target.module or Path(target.file).name}:{name}",
        promise=data,
        keywords=accepted(factory),
        file=str(getattr(module, "__file__", "") or ""),
        converts=converter(factory) is not None,
    )


def accepted(factory: Factory) -> tuple[str, ...]:
    """Return those constructor keywords of a subject that `factory` accepts.

    Its signature says so, unless it hands any keyword on (`**kwargs`): then it is called.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return _tried(factory)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return _tried(factory)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = {parameter.name for parameter in parameters if parameter.kind in kinds}
    return tuple(keyword for keyword in KEYWORDS if keyword in names)


def _tried(factory: Factory) -> tuple[str, ...]:
    """Return the keywords that are left when `factory` is called, once it refuses none of them by name.

    Whatever else it raises is not looked at here: it raises that again where a case is built.
    """
    left = dict(_DEFAULTS)
    while True:
        try:
            factory(1, **left)
        except TypeError as error:
            found = _NOT_TAKEN.search(str(error))
            name = next(filter(None, found.groups()), "") if found else ""
            if name not in left:
                return tuple(left)
            del left[name]
        except BaseException:
            return tuple(left)
        else:
            return tuple(left)


def converter(factory: Factory) -> Callable[..., Any] | None:
    """Return the `convert_sync_batchnorm` of `factory`; None if it has none, or only inherits torch's."""
    found = getattr(factory, _CONVERTER, None)
    if isinstance(factory, type):
        owner = next((one for one in factory.__mro__ if _CONVERTER in vars(one)), factory)
        if owner.__module__.startswith("torch."):
            return None
    return found if callable(found) else None
