"""A pass that is killed goes on where it was; whatever its journal has become, the hospital is the same."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from client import folder as client_folder
from client import journal
from client.dataset import open_hospital
from client.image_child import Opened
from tests.client.dicom_files import write_hospital
from tests.client.test_dataset import DATA, TASK, decoded, equal

__all__ = ["decoded"]
FILES, KILLED_AFTER = 25, 10


def _killed(site: str) -> None:
    """Read a hospital, writing down each file, until this process is killed."""
    journal.BETWEEN = 0.0
    setattr(client_folder, "BETWEEN", 0.0)  # noqa: B010 - imported there

    def progress(done: int, total: int) -> None:
        if done == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    open_hospital(Path(site), DATA, TASK, progress=progress)


def kill(site: Path) -> None:
    """Begin to read a hospital of 25 files, and die in the middle."""
    process = get_context("spawn").Process(target=_killed, args=(str(site),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a hospital of 25 files, one of them no image, whose first reading was killed after ten."""
    site = tmp_path_factory.mktemp("killed") / "site"
    write_hospital(site)
    (site / "aaa.dcm").write_bytes(b"no image")
    kill(site)
    return site


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "site"))


def lines(site: Path) -> list[list[str]]:
    """Return quarantine.csv."""
    with (site / ".zamenis" / "quarantine.csv").open() as file:
        return list(csv.reader(file))


def test_a_killed_pass_goes_on_where_it_was(folder: Path, decoded: list[Opened]) -> None:
    """Nothing is decoded twice, quarantine.csv was there all along, and the cases are those of one pass."""
    assert lines(folder)[1][:2] == ["aaa.dcm", "not DICOM"]
    first = open_hospital(folder, DATA, TASK)
    assert len(decoded) == FILES - KILLED_AFTER
    assert len(lines(folder)) == 2
    open_hospital(folder, DATA, TASK)
    assert len(decoded) == FILES - KILLED_AFTER
    cache = folder / ".zamenis" / "cache"
    assert {path.stat().st_mode & 0o777 for path in cache.rglob("*") if path.is_file()} == {0o600}
    shutil.rmtree(cache)
    assert equal(first, open_hospital(folder, DATA, TASK))


def test_killed_again_and_again_a_pass_ends(folder: Path, decoded: list[Opened]) -> None:
    """Each goes on from the last; the array that stood before stays."""
    (folder / "series0" / "p0i0.dcm").touch()
    kill(folder)
    first = open_hospital(folder, DATA, TASK)
    assert len(decoded) == FILES - KILLED_AFTER
    shutil.rmtree(folder / ".zamenis" / "cache")
    assert equal(first, open_hospital(folder, DATA, TASK))


def cut_line(lines: Path, pixels: Path) -> None:
    """Lose the end of the last line."""
    lines.write_bytes(lines.read_bytes()[:-20])


def lost_pixels(lines: Path, pixels: Path) -> None:
    """Lose the last row and a half."""
    pixels.write_bytes(pixels.read_bytes()[: -4 * 64 * 3 // 2])


def garbage(lines: Path, pixels: Path) -> None:
    """Become something else in the middle."""
    content = lines.read_bytes()
    lines.write_bytes(content[: len(content) // 2] + b'\n["x", 3]\n{}\n' + content[len(content) // 2 :])


def other_stamp(lines: Path, pixels: Path) -> None:
    """Be of another version."""
    lines.write_bytes(b"another\n" + lines.read_bytes())


@pytest.mark.parametrize("damage", [cut_line, lost_pixels, garbage, other_stamp])
def test_a_damaged_journal_costs_work_and_nothing_else(
    folder: Path, decoded: list[Opened], damage: Callable[[Path, Path], None]
) -> None:
    """What does not fit is read again."""
    cache = folder / ".zamenis" / "cache" / "1x8x8"
    damage(cache / "fresh.jsonl", cache / "fresh.pixels")
    first = open_hospital(folder, DATA, TASK)
    assert FILES - KILLED_AFTER < len(decoded) <= FILES - 1
    shutil.rmtree(cache)
    assert equal(first, open_hospital(folder, DATA, TASK))


def test_what_is_noted_after_a_line_that_was_cut_off_is_found(folder: Path, decoded: list[Opened]) -> None:
    """The next pass begins a line of its own: killed as well, it loses nothing that it wrote down."""
    cache = folder / ".zamenis" / "cache" / "1x8x8"
    cut_line(cache / "fresh.jsonl", cache / "fresh.pixels")
    kill(folder)
    open_hospital(folder, DATA, TASK)
    assert len(decoded) == FILES - KILLED_AFTER


def test_a_row_that_was_lost_is_nobodys_when_another_takes_its_place(tmp_path: Path) -> None:
    """Lines that speak of lost pixels go with them: no file gets another's."""

    def opened() -> journal.Journal:
        return journal.Journal(tmp_path, (1, 2, 2), "stamp")

    first = opened()
    for name in ("a", "b"):
        first.note(name, first.append(name.encode() * 16), [name])
    first.close(failed=True)
    pixels = tmp_path / "fresh.pixels"
    pixels.write_bytes(pixels.read_bytes()[:16])
    second = opened()
    assert second.found == {"a": (0, ["a"])}
    second.note("c", second.append(b"c" * 16), ["c"])
    second.close(failed=True)
    third = opened()
    assert third.found == {"a": (0, ["a"]), "c": (1, ["c"])}
    assert third.array().tobytes() == b"a" * 16 + b"c" * 16
    third.close(failed=False)


def test_a_file_that_changes_after_the_kill_is_read_again(folder: Path, decoded: list[Opened]) -> None:
    """The journal knows files by size and time, as the cache does."""
    write_hospital(folder)
    open_hospital(folder, DATA, TASK)
    assert len(decoded) == FILES - 1
