"""Every property is described, in the order of the catalogue, and the page and the help hold them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties.judge.catalogue import PROPERTIES, listing, page
from verify import errors
from verify.cli.main import main

PAGE = Path(__file__).parents[3] / "docs" / "properties.md"


def test_every_property_has_all_its_sentences():
    for one in PROPERTIES.values():
        for text in (one.holds, one.not_judged):
            assert text[0].isupper()
            assert text.endswith(".")
        assert one.must.endswith(".")
        assert one.quantities
        assert one.violation[-1] != "."


def test_the_page_is_what_the_command_makes(tmp_path):
    file = tmp_path / "page.md"
    assert main(["properties", "--table", str(file)]) == errors.OK
    assert file.read_text() == page()
    assert PAGE.read_text() == page(), "make it again: python -m verify properties --table docs/properties.md"
    for name, one in PROPERTIES.items():
        assert f"## {name}\n\n{one.holds}" in page()


def test_the_command_and_the_help_list_them(capsys):
    assert main(["properties"]) == errors.OK
    listed = capsys.readouterr().out
    assert listed == f"{listing()}\n"
    assert main(["run", "--help"]) == errors.OK
    told = capsys.readouterr().out
    assert listed in told
    assert "SYNCBN_VERIFY_DATA" in told


def test_a_page_that_cannot_be_written_is_a_bad_argument(capsys):
    assert main(["properties", "--table", "/nowhere/at/all.md"]) == errors.USAGE
    assert "--table to be writable" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--help"], ["replay", "--help"]])
def test_the_data_folder_is_named_in_the_help(command, capsys):
    assert main(command) == errors.OK
    assert "SYNCBN_VERIFY_DATA" in capsys.readouterr().out
