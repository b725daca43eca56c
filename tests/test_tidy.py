"""The house in order: where things live, how long they are, that names and imports are single-minded.

Layers and forbidden imports are contracts of import-linter (`pyproject.toml`); this is what it cannot say.
"""

from __future__ import annotations

import ast
import contextlib
import graphlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from verify.cli.parser import parse
from verify.errors import UsageError

ROOT = Path(__file__).parents[1]
PACKAGES = ("verify", "properties", "reference")
SOURCES = sorted(
    path
    for package in (*PACKAGES, "benchmarks")
    for path in (ROOT / package).rglob("*.py")
    if not path.is_symlink()
)
MOST_ON_TOP = {"verify": 12, "properties": 8}
MOST_LINES, MOST_CLASS_LINES = 400, 250
NO_WORDS = (
    *("Begun", "Over", "Deadly", "Laid", "Ran", "Gate", "Remains", "Crew", "Dossier", "Memory"),
    *("Past", "Peer", "Link", "Settings", "Overrides", "Transport"),
)
"""Names that classes had: participles, puns, and words that mean something else in the field."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names_twice(paths: list[Path]) -> list[str]:
    """Return the file names that occur twice; `cli/` is named after its commands."""
    counted = Counter(
        path.name for path in paths if path.parent.name != "cli" and not path.stem.startswith("__")
    )
    return [name for name, times in counted.items() if times > 1]


def too_long(path: Path, text: str) -> list[str]:
    """Return which parts of a module are longer than they may be."""
    found = []
    if (lines := text.count("\n")) > MOST_LINES:
        found.append(f"{path.name}: {lines} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_CLASS_LINES:
                found.append(f"{path.name}: class {node.name}, {lines} lines")
    return found


def imports(text: str) -> Iterator[str]:
    """Yield what a module imports while it is loaded: not in functions, not for the type checker alone."""

    def visit(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            match node:
                case ast.Import():
                    yield from (alias.name for alias in node.names)
                case ast.ImportFrom(module=str(module), level=0):
                    yield module
                    yield from (f"{module}.{alias.name}" for alias in node.names)
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from visit(node.orelse)
                case ast.If() | ast.With() | ast.Try():
                    yield from visit(node.body)

    return visit(ast.parse(text).body)


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports; a package counts as what it imports itself."""
    return {
        name: {found for found in imports(text) if found in sources and found != name}
        for name, text in sources.items()
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", MOST_ON_TOP)
def test_the_top_of_a_package_holds_what_flows(package: str) -> None:
    on_top = [path.name for path in (ROOT / package).iterdir() if path.suffix == ".py"]
    assert len(on_top) <= MOST_ON_TOP[package], sorted(on_top)


def test_no_file_name_occurs_twice() -> None:
    assert names_twice(SOURCES) == []
    assert names_twice([Path("a/case.py"), Path("b/case.py"), Path("cli/run.py"), Path("c/run.py")]) == [
        "case.py"
    ]


def test_modules_and_classes_are_short_enough_to_be_read() -> None:
    assert [found for path in SOURCES for found in too_long(path, path.read_text("utf-8"))] == []
    planted = "class Long:\n" + "    x = 1\n" * MOST_CLASS_LINES + "\n" * MOST_LINES
    assert len(too_long(Path("planted.py"), planted)) == 2


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        relative(path)
        for path in SOURCES
        if path.read_text("utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


def test_no_modules_import_each_other() -> None:
    order = graph({module_name(path): path.read_text("utf-8") for path in SOURCES})
    list(graphlib.TopologicalSorter(order).static_order())
    planted = {"a": "from b import x", "b": "if True:\n    import a", "c": "def f():\n    import a"}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph(planted)).static_order())


def test_classes_have_the_words_of_the_field() -> None:
    found = [
        f"{relative(path)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name in NO_WORDS
    ]
    assert found == []


PLACE = re.compile(r"(?<![\w/.-])((?:verify|properties|reference|benchmarks)/[\w/]+\.(?:py|toml))\b")
MODULE = re.compile(r"`((?:verify|properties|reference)(?:\.[a-z_]+)+)(?:\.[A-Z]\w*)?`")


def missing(text: str) -> list[str]:
    """Return the files and modules of ours that `text` names and that are not there."""
    places = [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    return places + [name for name in MODULE.findall(text) if not _exists(name)]


def _exists(name: str) -> bool:
    """Whether `name` is a module, or the name of something in one."""
    path, parent = ROOT.joinpath(*name.split(".")), ROOT.joinpath(*name.split(".")[:-1])
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return True
    holders = (parent.with_suffix(".py"), parent / "__init__.py")
    return any(file.is_file() and path.name in file.read_text("utf-8") for file in holders)


def test_what_texts_name_is_there() -> None:
    texts = [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert missing("`verify.gone.Thing` and verify/gone.py") == ["verify/gone.py", "verify.gone"]
    found = {
        relative(path): gone
        for path in texts
        if path.name != "CHANGELOG.md" and (gone := missing(path.read_text("utf-8")))
    }
    assert found == {}


COMMAND = re.compile(r"(?:python -m verify|syncbn-verify) ([^`\n]*)")


def shown(text: str) -> list[list[str]]:
    """Return the command lines of ours that a page shows, without comments, optional parts and ellipses."""
    found = []
    for line in COMMAND.findall(text):
        plain = re.sub(r"\[[^\]]*\]|\.\.\.", "", line).replace("\\|", "|")
        with contextlib.suppress(ValueError):  # a quotation that goes on in the next line
            found.append(shlex.split(plain, comments=True))
    return [words for words in found if words and not words[-1].startswith("--subject")]


def test_the_commands_that_pages_show_are_those_of_the_parser() -> None:
    lines = [
        words
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
        for words in shown(page.read_text("utf-8"))
    ]
    assert len(lines) > 20
    for words in lines:
        assert parse(words).command == words[0], words
    with pytest.raises(UsageError):
        parse(shown("`python -m verify run --every-element`")[0])
