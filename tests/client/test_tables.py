"""Labels and tables: what is read, how features come about, and what each fault is told as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.cells import class_of
from client.dataset import open_hospital
from client.labels import read_labels
from client.tables import read_table
from common.errors import DataError
from common.sections import Data, Task

TASK = Task(label="disease", classes=("0", "1"))
SCHEMA = """
label = "disease"
patient = "patient"
split = "set"
numeric = ["age", "chol", "flat"]
[categorical]
cp = ["1.0", "2.0"]
[missing]
chol = [0]
"""
TABLE = """patient,set,age,chol,flat,cp,disease
a,train,50,200,0.1,1,0
b,train,60,0,0.1,2.0,1
c,train,70,300,0.1,,1.0
d,test,?,400,0.1,1.0,0
e,test,65,250,0.1,2,1
"""


def table(folder: Path, text: str = TABLE, schema: str = SCHEMA) -> Path:
    """Write a table hospital."""
    (folder / "table.csv").write_text(text)
    (folder / "schema.toml").write_text(schema)
    return folder


def labels(folder: Path, text: str) -> Path:
    """Write labels.csv."""
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_features_by_hand(tmp_path: Path) -> None:
    """Standardised with the adaptation rows' mean and n - 1 deviation, missing is 0; then indicators.

    Ages 50, 60, 70: mean 60, deviation 10. Cholesterol 200, 300 (0 is a code): 250, sqrt(5000).
    """
    hospital = open_hospital(table(tmp_path), Data(), TASK)
    step = 50 / 5000**0.5
    learned = [[-1, -step, 0, 1, 0], [0, 0, 0, 0, 1], [1, step, 0, 0, 0]]
    tested = [[0, 3 * step, 0, 1, 0], [0.5, 0, 0, 0, 1]]
    torch.testing.assert_close(hospital.adaptation.inputs, torch.tensor(learned))
    torch.testing.assert_close(hospital.test.inputs, torch.tensor(tested))
    assert hospital.adaptation.labels.tolist() == [0, 1, 1]
    assert hospital.census.per_class == {"0": 2, "1": 3}
    assert hospital.census.patients == 5


def test_columns_without_a_name_are_no_matter(tmp_path: Path) -> None:
    """As spreadsheets leave them behind, and other programs write row numbers."""
    text = "".join(f"{place},{line},,\n" for place, line in enumerate(TABLE.splitlines()))
    hospital = open_hospital(table(tmp_path, text.replace("0,", ",", 1)), Data(), TASK)
    assert hospital.adaptation.inputs.shape == (3, 5)


def test_bits_come_last_and_are_not_standardised(tmp_path: Path) -> None:
    """Hexadecimal 81 is 1000 0001, the first bit the highest; a bit that is set everywhere stays 1."""
    lines = TABLE.splitlines()
    cells = ("print", "81", "8F", "ff", "", "80")
    text = "\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)) + "\n"
    hospital = open_hospital(table(tmp_path, text, SCHEMA + "[bits]\nprint = 8\n"), Data(), TASK)
    learned = [[1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 1, 1, 1], [1] * 8]
    assert hospital.adaptation.inputs[:, 5:].tolist() == learned
    assert hospital.test.inputs[:, 5:].tolist() == [[0] * 8, [1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("cell", ["8", "8g", "081", "-1"])
def test_a_cell_that_is_no_packed_bits_is_told_by_line(tmp_path: Path, cell: str) -> None:
    """Too few digits, too many, and what is no digit; the cell itself is not told."""
    text = f"set,print,disease\ntrain,00,0\ntest,{cell},1\n"
    schema = 'split = "set"\n[bits]\nprint = 8\n'
    with pytest.raises(DataError, match="line 3: print must be 2 hexadecimal digits") as error:
        open_hospital(table(tmp_path, text, schema), Data(), TASK)
    assert "8g" not in str(error.value)


def test_test_rows_do_not_touch_the_standardisation(tmp_path: Path) -> None:
    """Whatever the test rows hold, the adaptation features stay the same."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = open_hospital(table(tmp_path / "one"), Data(), TASK)
    two = open_hospital(table(tmp_path / "two", TABLE.replace("65,250", "9999,1")), Data(), TASK)
    assert torch.equal(one.adaptation.inputs, two.adaptation.inputs)


def test_rows_without_a_usable_label_are_refused(tmp_path: Path) -> None:
    """A missing label and an unknown class leave the row out, say so, and name the line, not its content."""
    text = TABLE + "f,test,1,1,1,1,\n\ng,test,1,1,1,1,perhaps\n"
    hospital = open_hospital(table(tmp_path, text), Data(), TASK)
    assert hospital.census.refused == {"missing label": 1, "unknown class": 1}
    told = (tmp_path / ".zamenis/quarantine.csv").read_text()
    assert "table.csv line 7,missing label" in told
    assert "table.csv line 9,unknown class" in told
    assert "perhaps" not in told


def test_a_patient_is_never_on_both_sides(tmp_path: Path) -> None:
    """Without a split column the patient decides, so rows of one patient stay together."""
    rows = "".join(f"p{row % 20},{row},1,1,1,{row % 2}\n" for row in range(100))
    text, schema = "patient,age,chol,flat,cp,disease\n" + rows, SCHEMA.replace('split = "set"', "")
    hospital = open_hospital(table(tmp_path, text, schema), Data(), TASK)
    learned, tested = (set(side.patients.tolist()) for side in (hospital.adaptation, hospital.test))
    assert not learned & tested
    assert learned | tested == set(range(20))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("b,train,60", "b,train,sixty", "line 3: age must be a finite number, and holds text"),
        ("b,train,60", "b,train,inf", "line 3: age must be a finite number, and holds an infinite number"),
        (
            "b,train,60",
            'b,train,"6,05"',
            r"line 3: .* a number with a comma\. Write decimals with a point",
        ),
        ("b,train,60", "b,train,06.05.1960", "line 3: age must .* holds a date"),
        (
            ",0.1,",
            ",<605,",
            "line 2: flat .* a bound instead of a number; 4 more lines hold no number",
        ),
        ("0.1,2.0,1", "0.1,9,1", "line 3: cp is no category"),
        ("b,train", "b,later", "line 3: set must be adaptation, test or empty"),
        ("b,train,60", "b,train", "line 3: has 6 cells"),
        (",disease", ",diseases", "no column disease.*Did you mean diseases"),
        ("patient,", "patients,", "no column patient, needed as the patient"),
        ("age", "set", "names column set twice"),
        ("d,test", "a,test", "a patient on both sides"),
        ("test", "train", "adaptation side: too few"),
    ],
)
def test_faults_of_a_table_are_told_by_line_and_column(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    """Each fault names column and line, never the content."""
    with pytest.raises(DataError, match=message) as error:
        open_hospital(table(tmp_path, TABLE.replace(old, new)), Data(), TASK)
    assert not any(value in str(error.value) for value in ("sixty", "6,05", "605", "06.05.1960"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"flat"]', '"flat", "disease"]', "disease is the label and a feature"),
        ("[categorical]", '[categorical]\ndisease = ["0", "1"]', "disease is the label and a feature"),
        ('"flat"]', '"flat", "patient"]', "patient is the patient and a feature"),
        ('"flat"]', '"flat", "set"]', "set is the split and a feature"),
    ],
)
def test_what_gives_the_answer_away_is_no_feature(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The label of the run, whatever schema.toml calls the label; and who a patient is."""
    with pytest.raises(DataError, match=rf"schema\.toml: {message} as well"):
        read_table(table(tmp_path, TABLE, SCHEMA.replace(old, new)), TASK)


def test_of_a_regression_that_is_no_number_is_told_what_it_holds(tmp_path: Path) -> None:
    """In quarantine.csv, by line; the value is not told."""
    lines = TABLE.splitlines()
    cells = ("weight", "60", "70", '"60,5"', "61", "5 kg")
    text = "\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)) + "\n"
    hospital = open_hospital(table(tmp_path, text), Data(), Task(kind="regression", label="weight"))
    assert hospital.census.refused == {"label is no number": 2}
    told = (tmp_path / ".zamenis/quarantine.csv").read_text().splitlines()
    assert "line 4" in told[1]
    assert "holds a number with a comma. Write decimals with a point" in told[1]
    assert "line 6" in told[2]
    assert "a number with a unit" in told[2]
    assert "60,5" not in told[1]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("numeric = 3", "numeric"),
        ("colour = 'blue'", "colour"),
        ("label = ", "TOML"),
        ("label = 'disease'", "names no feature"),
        ("[categorical]\ncp = []", "categorical.cp"),
        ("[bits]\ncp = 12", "bits.cp"),
    ],
)
def test_faults_of_a_schema_name_the_key(tmp_path: Path, schema: str, message: str) -> None:
    """schema.toml is validated before the table is read."""
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, TABLE, schema), TASK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,disease\na,1\n", "first column must be one of SOPInstanceUID"),
        ("path,deseas\na,1\n", "no column disease.*Did you mean deseas"),
        ("path,disease\na,\n", "has no label at all"),
        ("path,disease\n", "at least one row"),
        ("path,disease\na,1\na,0\n", "line 3: contradicts"),
        ("path,disease,split\na,1,maybe\n", "line 2: split must be"),
    ],
)
def test_faults_of_labels_are_told(tmp_path: Path, text: str, message: str) -> None:
    """Each fault of labels.csv has one clear message."""
    with pytest.raises(DataError, match=message):
        read_labels(labels(tmp_path, text), TASK)


def test_labels_as_a_spreadsheet_saves_them(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, stray spaces, repeated lines and ./ do no harm."""
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffpath, disease ,split\r\n./a.dcm,1 ,test\r\na.dcm,1,test\r\nb.dcm,0,\r\n".encode())
    read = read_labels(path, TASK)
    assert read.key == "path"
    assert read.rows == {"a.dcm": (("1",), False), "b.dcm": (("0",), None)}


def test_classes_compare_as_numbers_where_they_are() -> None:
    """1.0 names the class 1; words compare as words; nothing else names a class."""
    assert [class_of(label, ("0", "1", "normal")) for label in ("1.0", "normal", "2", "")] == [
        1,
        2,
        None,
        None,
    ]


FLAMBY = Path(__file__).parents[2] / "../shared/data/heart_4site/heart_flamby.csv"


@pytest.mark.skipif(not FLAMBY.is_file(), reason="the public heart disease table is not on this machine")
def test_the_public_heart_table_is_standardised_as_its_reference_does(tmp_path: Path) -> None:
    """Cleveland's training rows: every numeric column that varies has mean 0 and n - 1 deviation 1."""
    header, *rows = FLAMBY.read_text().splitlines()
    columns = header.split(",")
    features = [name for name in columns if name not in ("site", "set", "disease")]
    cleveland = [row for row in rows if row.startswith("cleveland,")]
    schema = f'split = "set"\nnumeric = {features}'
    hospital = open_hospital(table(tmp_path, "\n".join([header, *cleveland]) + "\n", schema), Data(), TASK)
    assert len(hospital.adaptation) == sum(",train," in row for row in cleveland)
    learned = hospital.adaptation.inputs.double()
    np.testing.assert_allclose(learned.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(learned.std(0, correction=1), 1, atol=1e-6)
