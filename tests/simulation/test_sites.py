"""Real tables as hospitals: what is kept, what is left out and told, what is refused."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from client.dataset import open_hospital
from client.dicom import read_image
from common.errors import ConfigError, DataError
from common.sections import Data, Task
from simulation.sites import import_images
from simulation.tables import import_table

DATA = Path(__file__).parents[3] / "shared" / "data"
CHEST = DATA / "chest_xray_views" / "chest_xray_views.csv"
HEART = DATA / "heart_4site" / "heart_4site.csv"


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _instances(hospital: Path) -> list[Dataset]:
    return [dcmread(path) for path in sorted(hospital.rglob("*.dcm"))]


def _import_images(
    table: Path, folder: Path, *, patient_column: str | None = "patient", seed: int = 0
) -> list[Path]:
    return import_images(
        table,
        folder,
        path_column="file",
        site_column="site",
        label_columns=["view"],
        patient_column=patient_column,
        seed=seed,
    )


def _import_table(
    table: Path,
    folder: Path,
    *,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    missing: Mapping[str, Sequence[str]] | None = None,
    split_column: str | None = None,
    drop: Sequence[str] = (),
) -> list[Path]:
    return import_table(
        table,
        folder,
        site_column="site",
        label_column="disease",
        numeric=numeric,
        categorical=categorical,
        missing=missing or {},
        split_column=split_column,
        seed=0,
        drop=drop,
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write two sites' table with images of every depth, and four rows that cannot be used."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "equal.bmp")
    Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / "colour.tiff")
    Image.fromarray(rng.integers(0, 65536, (4, 5), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "lossy.jpg")
    (tmp_path / "broken.png").write_bytes((tmp_path / "grey.png").read_bytes()[:40])
    return _write(
        tmp_path / "images.csv",
        "file,site,view,patient",
        "grey.png,north,PA,anna",
        "equal.bmp,north,AP,anna",
        "colour.tiff,north,PA,bert",
        "deep.png,south,PA,anna",
        "lossy.jpg,south,AP,carl",
        "broken.png,south,AP,carl",
        "absent.png,south,AP,carl",
        "grey.png,south,,carl",
        "grey.png,south,AP",
    )


def test_pixels_come_through_at_their_own_depth(images: Path, tmp_path: Path) -> None:
    """Grey of 8 and 16 bits and RGB are exactly the files' pixels; equal colours become grey."""
    north, south = _import_images(images, tmp_path / "out")
    found = {
        (one.BitsStored, one.SamplesPerPixel, one.Rows): one
        for one in _instances(north) + _instances(south)[:1]
    }
    for name, key in (("grey.png", (8, 1, 5)), ("colour.tiff", (8, 3, 4)), ("deep.png", (16, 1, 4))):
        with Image.open(images.parent / name) as image:
            assert np.array_equal(found[key].pixel_array, np.asarray(image))
    assert [one.SamplesPerPixel for one in _instances(north)] == [1, 1, 3]


def test_unusable_rows_are_told_by_line_and_never_by_value(images: Path, tmp_path: Path) -> None:
    """A broken file, an absent one, no label, too few cells: the other rows are imported all the same."""
    folders = _import_images(images, tmp_path / "out")
    assert [len(_read(folder / "labels.csv")) for folder in folders] == [3, 2]
    skipped = _read(tmp_path / "out" / "skipped.csv")
    assert [int(row["line"]) for row in skipped] == [7, 8, 9, 10]
    assert "carl" not in (tmp_path / "out" / "skipped.csv").read_text()


def test_patients_are_pseudonyms_that_differ_between_sites(images: Path, tmp_path: Path) -> None:
    """One patient's images share a PatientID within a site, which is another one at the next site."""
    north, south = (_instances(folder) for folder in _import_images(images, tmp_path / "out"))
    first, second, third = (one.PatientID for one in north)
    assert first == second != third
    assert not {first, third} & {one.PatientID for one in south}
    assert not any(
        name in path.read_bytes() for path in tmp_path.rglob("*.dcm") for name in (b"anna", b"bert")
    )


def test_without_a_patient_column_every_file_is_a_patient(images: Path, tmp_path: Path) -> None:
    """So many files, so many PatientIDs."""
    north, _ = _import_images(images, tmp_path / "out", patient_column=None)
    assert len({one.PatientID for one in _instances(north)}) == 3


def test_a_lossy_file_says_so(images: Path, tmp_path: Path) -> None:
    """LossyImageCompression stays with an image that was a JPEG once (PS3.3 C.7.6.1.1.5)."""
    _, south = _import_images(images, tmp_path / "out")
    assert [one.get("LossyImageCompression") for one in _instances(south)] == [None, "01"]


def test_the_seed_decides_every_byte(images: Path, tmp_path: Path) -> None:
    """Twice the same seed gives the same files, another seed other identifiers."""
    once, again, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder, seed in ((tmp_path / "a", 1), (tmp_path / "b", 1), (tmp_path / "c", 2))
        if _import_images(images, folder, seed=seed)
    )
    assert once == again != other


def test_the_hospital_reader_takes_every_imported_image(images: Path, tmp_path: Path) -> None:
    """RGB and 16 bits included, each becomes a tensor in [0, 1] that is not all one value."""
    for folder in _import_images(images, tmp_path / "out"):
        for path in folder.rglob("*.dcm"):
            pixels = read_image(path, size=8, channels=1).pixels
            assert 0 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("../up", "start with a dot"),
        (".hidden", "start with a dot"),
        ("a/b", "path separators"),
        ("NORTH", "case"),
    ],
)
def test_a_site_name_that_is_no_folder_name_is_refused(
    images: Path, tmp_path: Path, name: str, rule: str
) -> None:
    """Before anything is written, with the rule."""
    table = _write(
        images.parent / "unsafe.csv", "file,site,view,patient", "a.png,north,PA,x", f"b.png,{name},PA,y"
    )
    with pytest.raises(DataError, match=rule):
        _import_images(table, tmp_path / "out")
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_misspelt_column_is_refused_with_the_nearest_one(images: Path, tmp_path: Path) -> None:
    """The error names the column asked for and the one probably meant."""
    with pytest.raises(DataError, match=r"no column patiant\. Did you mean patient\?"):
        _import_images(images, tmp_path / "out", patient_column="patiant")


def test_a_table_without_a_usable_row_is_refused_and_leaves_the_reasons(images: Path, tmp_path: Path) -> None:
    """The error counts the reasons; no empty hospital appears."""
    table = _write(images.parent / "none.csv", "file,site,view,patient", "absent.png,north,PA,x")
    with pytest.raises(DataError, match=r"no usable row: there is no such file \(1 rows\)"):
        _import_images(table, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.csv"]
    _write(images.parent / "none.csv", "file,site,view,patient", "grey.png,north,PA,x")
    _import_images(table, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["north"], "nobody is left out any more"


def test_paths_with_backslashes_are_found(images: Path, tmp_path: Path) -> None:
    """As a table from Windows names its images."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "grey.png").rename(tmp_path / "scans" / "grey.png")
    table = _write(images, "file,site,view,patient", "scans\\grey.png,north,PA,anna")
    (north,) = _import_images(table, tmp_path / "out")
    assert len(_instances(north)) == 1


def test_columns_that_hold_no_numbers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A column with decimal commas, or dates, is no feature, and does not go unnoticed."""
    rows = [f'north,{row},"{row},5",{row % 28 + 1}.03.2020,{row % 2}' for row in range(9)]
    (north,) = _import_table(
        _write(tmp_path / "t.csv", "site,age,weight,seen,disease", *rows), tmp_path / "out"
    )
    assert tomllib.loads((north / "schema.toml").read_text())["numeric"] == ["age"]
    assert "weight (a number with a comma), seen (a date)" in caplog.text


def test_a_column_without_a_name_is_no_feature(tmp_path: Path) -> None:
    """Row numbers, as other programs write them, tell who a case is; empty columns tell nothing."""
    rows = [f"{row},north,{row},{row % 2},," for row in range(9)]
    (north,) = _import_table(_write(tmp_path / "t.csv", ",site,age,disease,,", *rows), tmp_path / "out")
    assert tomllib.loads((north / "schema.toml").read_text())["numeric"] == ["age"]


def test_what_a_spreadsheet_would_compute_is_written_as_text_and_read_as_it_was(tmp_path: Path) -> None:
    """A category, a patient and a class that begin like formulas; a negative number stays one."""
    rows = [f"north,-{row},=p{row},{'+' if row % 2 else '-'},@{row % 2}" for row in range(40)]
    source = _write(tmp_path / "t.csv", "site,age,patient,taste,disease", *rows)
    (north,) = import_table(
        source,
        tmp_path / "out",
        site_column="site",
        label_column="disease",
        numeric=["age"],
        categorical=["taste"],
        missing={},
        patient_column="patient",
        seed=0,
    )
    assert (north / "table.csv").read_text().splitlines()[2] == "'=p1,'@1,-1,'+"
    hospital = open_hospital(north, Data(), Task(label="disease", classes=("@0", "@1")))
    assert hospital.census.per_class == {"@0": 20, "@1": 20}
    assert hospital.adaptation.inputs[:, 1:].sum() == len(hospital.adaptation)


def test_a_hospital_that_stands_is_never_overwritten(images: Path, tmp_path: Path) -> None:
    """A second import into the same folder is refused, and a missing table as well."""
    _import_images(images, tmp_path / "out")
    with pytest.raises(DataError, match="left alone"):
        _import_images(images, tmp_path / "out")
    with pytest.raises(DataError, match="there is no such file"):
        _import_images(tmp_path / "absent.csv", tmp_path / "out")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write two sites; neither has every category of cp, and chol is 0 where it was not measured."""
    return _write(
        tmp_path / "table.csv",
        "site,disease,age,chol,cp,note,set",
        "east,1,63,233,1.0,x,train",
        "east,0,41,0,10,y,test",
        "west,1,50,?,2,z,adaptation",
        "west,0,fifty,199,1,z,test",
        "west,,50,199,1,z,test",
        "west,1,50,199,1,z,later",
    )


def test_every_site_gets_the_same_schema_with_all_sites_categories(table: Path, tmp_path: Path) -> None:
    """Categories are numbers in order where they are numbers, and 1 and 1.0 are one."""
    folders = _import_table(
        table,
        tmp_path / "out",
        numeric=["age", "chol"],
        categorical=["cp"],
        missing={"chol": ["0"]},
        split_column="set",
    )
    east, west = (tomllib.loads((folder / "schema.toml").read_text()) for folder in folders)
    assert east == west
    assert east == {
        "label": "disease",
        "split": "set",
        "numeric": ["age", "chol"],
        "categorical": {"cp": ["1.0", "2", "10"]},
        "missing": {"chol": [0]},
    }


def test_rows_without_label_number_or_split_are_left_out_and_told(table: Path, tmp_path: Path) -> None:
    """A cell that is no number, a blank label, a side that there is not: lines 5, 6 and 7."""
    _import_table(table, tmp_path / "out", numeric=["age", "chol"], categorical=["cp"], split_column="set")
    skipped = {int(row["line"]): row["reason"] for row in _read(tmp_path / "out" / "skipped.csv")}
    assert skipped == {
        5: "age: text, and no plain number",
        6: "disease: no label",
        7: "set: must be one of adaptation, train, test",
    }


def test_without_features_named_every_column_of_numbers_is_one(table: Path, tmp_path: Path) -> None:
    """Column age holds a word and note holds only words; chol (with ? for missing) and cp are numbers."""
    east, _ = _import_table(table, tmp_path / "out", split_column="set")
    assert tomllib.loads((east / "schema.toml").read_text())["numeric"] == ["chol", "cp"]
    assert list(_read(east / "table.csv")[0]) == ["set", "disease", "chol", "cp"]


def test_a_column_of_two_roles_is_refused(table: Path, tmp_path: Path) -> None:
    """The label among the features would give the answer away."""
    with pytest.raises(ConfigError, match="column disease: has two roles"):
        _import_table(table, tmp_path / "out", numeric=["age", "disease"])


@pytest.mark.skipif(
    not CHEST.is_file(), reason="the chest radiographs of shared/data are not on this machine"
)
def test_437_real_radiographs_become_three_hospitals(tmp_path: Path) -> None:
    """Sites and counts are those of the data's own description; every file is read again."""
    folders = _import_images(CHEST, tmp_path)
    counts = {folder.name: len(_read(folder / "labels.csv")) for folder in folders}
    assert counts == {"eurorad": 63, "hannover": 243, "radiopaedia": 131}
    census = open_hospital(folders[0], Data(image_size=16), Task(label="view", classes=("AP", "PA"))).census
    assert (census.accepted, dict(census.per_class)) == (63, {"AP": 15, "PA": 48})


@pytest.mark.skipif(
    not HEART.is_file(), reason="the heart disease table of shared/data is not on this machine"
)
def test_the_heart_table_becomes_four_hospitals(tmp_path: Path) -> None:
    """All 920 rows are kept, and every site has features of the same length."""
    folders = _import_table(
        HEART,
        tmp_path,
        numeric=["age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"],
        categorical=["cp", "restecg"],
        missing={"chol": ["0"]},
        drop=["num"],
    )
    task = Task(label="disease", classes=("0", "1"))
    hospitals = [open_hospital(folder, Data(), task) for folder in folders]
    assert {one.name: one.census.accepted for one in hospitals} == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    # Eight numbers, four kinds of chest pain, three kinds of resting ECG.
    assert {one.adaptation.inputs.shape[1] for one in hospitals} == {8 + 4 + 3}
