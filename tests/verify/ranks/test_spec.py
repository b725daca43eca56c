"""SPECs: modules, files, built-ins, and what is said of anything else."""

from __future__ import annotations

import pytest

from verify.errors import SubjectError
from verify.ranks.messages import Target
from verify.ranks.spec import resolve
from verify.subjects.builtins import BUILTINS


def test_a_module_and_an_attribute(tmp_path):
    found = resolve("package.module:Outer.factory", folder=tmp_path)
    assert found == Target(
        spec="package.module:Outer.factory", module="package.module", attribute="Outer.factory"
    )


@pytest.mark.parametrize("place", ["mine.py", "./mine.py", "sub/../mine.py"])
def test_a_file_is_sought_from_the_folder(tmp_path, place):
    (tmp_path / "mine.py").touch()
    (tmp_path / "sub").mkdir()
    assert resolve(f"{place}:F", folder=tmp_path).file == str((tmp_path / "mine.py").resolve())


def test_a_built_in_keeps_its_short_name(tmp_path):
    found = resolve("torch", folder=tmp_path)
    assert (found.spec, found.module) == ("torch", "verify.subjects.torch_syncbn")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", f"one of {', '.join(BUILTINS)}, but got 'nonsense'"),
        ("", "but got ''"),
        (":F", "module:factory or file.py:factory"),
        ("module:", "module:factory or file.py:factory"),
        ("module:a b", "module:factory or file.py:factory"),
        ("not a module:F", "a module name before the colon, but got 'not a module'"),
        ("./missing.py:F", "missing.py does not exist"),
    ],
)
def test_anything_else_is_refused_with_the_form(tmp_path, spec, message):
    with pytest.raises(SubjectError) as caught:
        resolve(spec, folder=tmp_path)
    assert message in str(caught.value)
