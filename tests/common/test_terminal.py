"""What commands print fits a narrow terminal, and can be copied."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common import terminal
from common.files import atomic


def test_a_table_that_is_too_wide_goes_on_below_in_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The widest column gives way, at words, or within one that is too long; brackets are no markup."""
    terminal.table(
        ("run", "state", "hospitals"),
        [("run-001", "learned nothing", f"{'st-anna, ' * 9}{'x' * 60}"), ("run-002", "[bold]", "a")],
    )
    assert capsys.readouterr().out.splitlines() == [
        "run      state            hospitals",
        f"run-001  learned nothing  {('st-anna, ' * 6).rstrip()}",
        f"{' ' * 26}st-anna, st-anna, st-anna,",
        f"{' ' * 26}{'x' * 54}",
        f"{' ' * 26}{'x' * 6}",
        "run-002  [bold]           a",
    ]


def test_what_stands_below_a_row_and_a_cell_of_several_lines_are_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A path or a fingerprint can be copied; what gives way for it is what is beside it."""
    path, half = "/srv/" + "long name/" * 12, "4f39 " * 11 + "4f39"
    terminal.table(("hospital", "key"), [("st-anna-and-its-many-children", f"{half}\n{half}")], [[path]])
    assert capsys.readouterr().out.splitlines() == [
        "hospital             key",
        f"st-anna-and-its-man  {half}",
        f"y-children           {half}",
        f"    {path}",
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
from common.files import atomic
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


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda temporary: temporary.write_bytes(b"1"),
        lambda temporary: shutil.copyfile(__file__, temporary),
        lambda temporary: os.write(os.open(FULL, os.O_WRONLY), b"1"),
    ],
)
def test_a_full_disk_is_told_by_the_file_that_was_to_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], object],
) -> None:
    """Whatever the fault names: a temporary file, the source of a copy, or nothing; and what to do."""
    app = terminal.command_line("")

    @app.command()
    def save() -> None:
        with atomic(tmp_path / "phi") as temporary:
            temporary.unlink()
            temporary.symlink_to(FULL)
            write(temporary)

    monkeypatch.setattr(sys, "argv", ["zamenis", "save"])
    with pytest.raises(SystemExit) as end:
        terminal.run(app, interrupted="")
    assert end.value.code == 2
    assert capsys.readouterr().err == f"Error {tmp_path}/phi: No space left on device. Make room.\n"
    assert list(tmp_path.iterdir()) == []
