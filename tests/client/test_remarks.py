"""What a hospital is told of its data that stops nothing: classes, patients, copies, keys."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from client.dataset import open_hospital
from common.errors import DataError, TooSmallError
from common.sections import Data, Task
from tests.client.dicom_files import write
from tests.conftest import give_key

TASK = Task(label="finding", classes=("normal", "nodule"))
SEVERAL = range(40)


def table(folder: Path, rows: Iterable[Sequence[object]], patient: str = "patient") -> tuple[str, ...]:
    """Return what is told of a table of patient, number and finding."""
    schema = (f'patient = "{patient}"\n' if patient else "") + 'numeric = ["a"]\n'
    (folder / "schema.toml").write_text(schema, encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("patient", "a", "finding"), *rows])
    return opened(folder)


def opened(folder: Path) -> tuple[str, ...]:
    """Return what is told of a folder, besides of sides that have one class."""
    if not (folder / ".zamenis").exists():
        give_key(folder)
    notes = open_hospital(folder, Data(image_size=8), TASK).census.warnings
    return tuple(note for note in notes if not note.startswith("all "))


def finding(number: int) -> str:
    """Return the finding of a row."""
    return TASK.classes[number % 2]


def images(folder: Path, patients: Sequence[str], **more: Sequence[str]) -> None:
    """Write one image of each patient, a.dcm, b.dcm, ... in order; `more` are further elements."""
    for place, patient in enumerate(patients):
        elements = {name: values[place] for name, values in more.items()}
        write(folder / f"{place:03}.dcm", np.eye(8, dtype=np.uint16) + place, PatientID=patient, **elements)


def labels(folder: Path, key: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return what is told of a folder of images whose labels are given to these keys."""
    lines = [f"{key},finding", *(f"{name},{finding(place)}" for place, name in enumerate(keys))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return opened(folder)


def test_nothing_is_told_where_nothing_is_doubtful(tmp_path: Path) -> None:
    """A table as it should be."""
    assert table(tmp_path, [(f"p{row}", row, finding(row)) for row in SEVERAL]) == ()


def test_a_class_that_does_not_occur_is_told(tmp_path: Path) -> None:
    """And what differs from it by case or blanks alone, with how often; quarantine.csv says which lines."""
    told = table(tmp_path, [(f"p{row}", row, ("normal", "Nodule ", "no dule")[row % 3]) for row in SEVERAL])
    assert told == (
        "no row's finding is nodule; see whether that class is spelt so there",
        "26 rows are left out because their finding differs from nodule by case or blanks alone; write it "
        "alike",
    )
    lines = (tmp_path / ".zamenis" / "quarantine.csv").read_text().splitlines()
    assert lines[1] == (
        "table.csv line 3,unknown class,Its label differs from nodule by case or blanks alone: write it so."
    )


def test_copies_of_a_row_are_told_where_no_patient_says_whose_they_are(tmp_path: Path) -> None:
    """Of three alike two are copies; another label, or a patient column, makes none of them."""
    rows = [(f"p{row}", row // 3, finding(row // 3)) for row in range(60)]
    assert [note.split()[:4] for note in table(tmp_path, rows, patient="")] == [
        ["40", "rows", "are", "copies"]
    ]
    assert table(tmp_path, rows) == ()
    others = [(f"p{row}", row // 2, finding(row)) for row in range(60)]
    assert table(tmp_path, others, patient="") == ()


def test_patients_who_differ_by_little_are_told(tmp_path: Path) -> None:
    """Case, blanks, leading zeros; how many, and no name."""
    names = ["P007", "p 7", "P7", "m-1", "M-01", *(f"q{row}" for row in SEVERAL)]
    (told,) = table(tmp_path, [(name, row, finding(row)) for row, name in enumerate(names)])
    assert told.startswith(
        "5 patients differ from another by case, blanks or leading zeros of patient alone."
    )
    assert "P7" not in told


def test_a_column_of_too_many_categories_is_told(tmp_path: Path) -> None:
    """Categories go to the coordinator; names and dates are none."""
    schema = 'patient = "p"\n[categorical]\nward = [{}]\n'
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("p", "ward", "finding"), *((i, i % 20, finding(i)) for i in SEVERAL)])
    for count, told in ((20, False), (21, True)):
        (tmp_path / "schema.toml").write_text(schema.format(", ".join(map(str, range(count)))))
        assert any("ward has 21 categories" in note for note in opened(tmp_path)) == told


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (lambda number: number % 4, True),  # grades of it: the even ones are normal, the odd ones nodules
        (lambda number: "" if number % 3 == 0 else number % 2, True),
        (lambda number: "" if number % 3 else number % 2, False),  # a third is measured
        (lambda number: number % 3, False),
        (lambda number: number, False),  # every row's own
    ],
)
def test_a_column_that_tells_the_answer_is_told(
    tmp_path: Path, cell: Callable[[int], object], told: bool
) -> None:
    """A diagnosis in other words gives a model its answer; a value that each patient has alone does not."""
    notes = table(tmp_path, [(f"p{row}", cell(row), finding(row)) for row in SEVERAL])
    words = (
        "a tells the finding: whoever has the same value of it has the same class. Where it is that"
        " diagnosis in other words, take it out of schema.toml"
    )
    assert notes == (words,) * told


def test_a_placeholder_for_patients_is_told(tmp_path: Path) -> None:
    """A few who share one; and a table in which all do is no table of patients."""
    names = ["Unknown"] * 3 + ["ANONYMOUS"] * 2 + [f"q{row}" for row in SEVERAL]
    (told,) = table(tmp_path, [(name, row, finding(row)) for row, name in enumerate(names)])
    assert told.startswith("5 cases have a placeholder for patient, such as ANONYMOUS")
    with pytest.raises(TooSmallError, match=r"All 40 cases are one patient's: .* a placeholder"):
        table(tmp_path, [("MUSTER", row, finding(row)) for row in SEVERAL])


def test_patients_of_images_are_told_alike_and_as_ever_from_the_cache(tmp_path: Path) -> None:
    """By keyed hashes alone, so that a second pass, which opens no file, says the same."""
    names = ["007", "7", "ANON", "anon", *(f"q{row}" for row in range(8))]
    images(tmp_path, names)
    files = [f"{place:03}.dcm" for place in range(len(names))]
    first, second = (labels(tmp_path, "path", files) for _ in range(2))
    assert [note.split(" ", 1)[0] for note in first] == ["4", "2"]
    assert "PatientID" in first[0]
    assert "placeholder for PatientID" in first[1]
    assert second == first
    assert all("anon" not in path.read_text().lower() for path in (tmp_path / ".zamenis").rglob("index.json"))


NUMBERS = [f"{place:04}" for place in range(12)]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            [str(int(key)) for key in NUMBERS],
            "12 of 12 .*; 12 of the 12 .* leading zeros, which a spreadsheet",
        ),
        ([*NUMBERS[:6], *(str(int(key)) for key in NUMBERS[6:])], "6 of 12 .*; 6 of the 6 .* leading zeros"),
        ([f"0{key}" for key in NUMBERS], "12 of 12"),
        ([f"1.2E+{place:02}" for place in range(12)], "12 of the 12 that were tried are written like 1.2E"),
        ([f"other-{key}" for key in NUMBERS], "12 of 12 rows in labels.csv match no image. Check"),
        ([*NUMBERS, "12", "13"], "^2 of 14 rows in labels.csv match no image$"),
    ],
)
def test_keys_that_lost_their_zeros_are_guessed(tmp_path: Path, keys: Sequence[str], told: str) -> None:
    """Where half of the rows or more match nothing; what is told has counts and no key."""
    images(tmp_path, [f"p{place}" for place in range(12)], AccessionNumber=NUMBERS)
    try:
        (note,) = labels(tmp_path, "AccessionNumber", keys)
    except DataError as error:
        note = str(error)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(note)


def test_paths_with_backslashes_and_whole_ones(tmp_path: Path) -> None:
    """Those of Windows are read as they are meant; those from a disk's root are guessed."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    images(tmp_path / "a" / "b", [f"p{place}" for place in range(12)])
    files = [f"{place:03}.dcm" for place in range(12)]
    assert labels(tmp_path, "path", [f".\\a\\b\\{name}" for name in files]) == ()
    with pytest.raises(DataError, match=r"12 of the 12 that were tried are whole paths"):
        labels(tmp_path, "path", [f"D:\\archive\\a\\b\\{name}" for name in files])


def test_a_path_with_an_umlaut_in_two_pieces_is_found(tmp_path: Path) -> None:
    """As an archive from another system has it."""
    (tmp_path / "pru\u0308fung").mkdir()
    images(tmp_path / "pru\u0308fung", [f"p{place}" for place in range(12)])
    assert labels(tmp_path, "path", [f"pr\u00fcfung/{place:03}.dcm" for place in range(12)]) == ()
