"""What commands print can be copied."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common import terminal


def test_a_table_breaks_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However long a cell is; columns stand one below the other; brackets are no markup."""
    long = "4f39 " * 60 + "[bold]"
    terminal.table(("hospital", "fingerprint"), [("st-anna", long), ("a", "-")])
    assert capsys.readouterr().out.splitlines() == [
        "hospital  fingerprint",
        f"st-anna   {long}",
        "a         -",
    ]


def test_a_table_of_wide_characters_stands_straight(capsys: pytest.CaptureFixture[str]) -> None:
    """A Chinese character takes two columns of a terminal."""
    terminal.table(("class", "cases"), [("正常", "1"), ("normal", "2")])
    assert capsys.readouterr().out.splitlines() == ["class   cases", "正常    1", "normal  2"]


def test_a_list_may_have_chinese_commas() -> None:
    """As a Chinese keyboard types them."""
    assert terminal.listed("正常\uff0c 积液,x") == ["正常", "积液", "x"]


def test_a_terminal_that_has_not_every_character_shows_question_marks() -> None:
    """A class, a path or a tick that it cannot show is no traceback, in words and in errors."""
    code = """
from common import terminal
from common.errors import DataError
app = terminal.command_line("x")

@app.command()
def show():
    terminal.console.print("✓", end=" ")
    terminal.plain("Größe 正常")
    raise DataError("/archiv/正常: is gone.")

terminal.run(app, interrupted="")
"""
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "show"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode("latin-1")) == (2, "? Größe ??\n")
    assert done.stderr.decode("latin-1") == "Error /archiv/??: is gone.\n"


def test_a_cell_of_two_lines_stays_in_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    """The other cells of its row are empty below; an empty cell is one line."""
    terminal.table(
        ("hospital", "fingerprint", "seen"), [("st-anna", "4f39 aa\n77 31", ""), ("a", "-", "now")]
    )
    assert capsys.readouterr().out.splitlines() == [
        "hospital  fingerprint  seen",
        "st-anna   4f39 aa",
        "          77 31",
        "a         -            now",
    ]


def test_facts_are_broken_within_their_column(capsys: pytest.CaptureFixture[str]) -> None:
    """At words, never within one that has to be copied; what is empty is left out."""
    path = "/srv/" + "a" * 90
    terminal.facts({"because": f"{'word ' * 30}{path}", "waits": "", "left out": "a, round 1\nb, round 2"})
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) <= 80 or line.strip() == path for line in lines] == [True] * len(lines)
    assert lines[0].startswith("because        word word")
    assert lines[1].startswith(" " * 15 + "word")
    assert lines[-2:] == ["left out       a, round 1", "               b, round 2"]


def test_a_bar_stays_within_80_columns_and_one_that_counts_nothing_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table is read at once, so it has no files to count; a bar of many thousands is the longest."""
    with terminal.ConsoleProgress() as progress:
        progress.counter("Reading files")
        progress.counter("Writing DICOM")(12345, 12345)
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert "Writing DICOM" in line
    assert "12345/12345" in line
    assert len(line) <= 80
