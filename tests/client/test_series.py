"""Which images of a study count: the hospital's choice of series, and one image of each X-ray exposure."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset, uid

from client.dataset import Hospital, open_hospital
from client.dicom import open_instance, read_image
from client.header import Header
from client.image_child import Opened
from common.errors import ConfigError
from common.sections import Data, Task
from tests.client.dicom_files import dataset, write
from tests.conftest import give_key

DATA, TASK = Data(image_size=8), Task(label="finding", classes=("normal", "nodule"))
PATIENTS = 6
AXIAL = {"SeriesDescription": "Thorax AXIAL 1.0", "SliceThickness": 1.0}
BONE = {"SeriesDescription": "bone", "SliceThickness": "3"}


def slices(folder: Path, study: str, count: int, **elements: Any) -> None:
    """Write a series of slices 1 mm apart, numbered from the last to the first."""
    chance, series = np.random.default_rng(count), uid.generate_uid()
    for place in range(count):
        write(
            folder / f"{series}-{place:02}.dcm",
            chance.integers(0, 4096, (12, 12)).astype(np.uint16),
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, place],
            InstanceNumber=count - place,
            **elements,
        )


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Return a hospital of CT studies, each of 5 axial slices and 3 of bone, labelled by study."""
    rows = ["StudyInstanceUID,finding"]
    for patient in range(PATIENTS):
        study = uid.generate_uid()
        slices(
            tmp_path / f"p{patient}/axial", study, 5, PatientID=f"Secret^{patient}", Modality="CT", **AXIAL
        )
        slices(tmp_path / f"p{patient}/bone", study, 3, PatientID=f"Secret^{patient}", Modality="CT", **BONE)
        rows.append(f"{study},{TASK.classes[patient % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    give_key(tmp_path)
    return tmp_path


def opened(folder: Path, series: str = "") -> tuple[Hospital, Counter[str]]:
    """Return the hospital under a choice of series, and how many files were left out for which reason."""
    if series:
        (folder / "images.toml").write_text(f"[series]\n{series}\n")
    hospital = open_hospital(folder, DATA, TASK)
    with (folder / ".zamenis/quarantine.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == sorted(line["file"] for line in lines)
    return hospital, Counter(line["reason"] for line in lines)


def pixels(hospital: Hospital) -> set[bytes]:
    """Return the hospital's images."""
    return {one.numpy().tobytes() for side in (hospital.adaptation, hospital.test) for one in side.inputs}


@pytest.mark.parametrize(
    ("series", "cases", "left"),
    [
        ("", 8, {}),
        ('description = ["*axial*"]', 5, {"another series": 3}),
        ('description = ["*axial*", "b?ne"]', 8, {}),
        ("thickness = [2, 4]", 3, {"another series": 5}),
        ('modality = ["CT", "PT"]', 8, {}),
        ("one-per-study = true", 5, {"another series": 3}),
        ('take = "middle"', 2, {"another image of its series": 6}),
        ('one-per-study = true\ntake = "middle"', 1, {"another series": 3, "another image of its series": 4}),
        ('thickness = [2, 4]\ntake = "middle"', 1, {"another series": 5, "another image of its series": 2}),
    ],
)
def test_a_hospital_chooses_which_series_count(
    studies: Path, series: str, cases: int, left: Mapping[str, int]
) -> None:
    """By what a header says, and by what else is in the study; each file left out has its reason."""
    hospital, reasons = opened(studies, series)
    assert hospital.census.accepted == PATIENTS * cases
    assert reasons == {reason: PATIENTS * count for reason, count in left.items()}


def test_the_middle_is_by_position_and_alone_is_decoded(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study's slices cost one decoding; a second pass costs none, and gives the same."""
    read: list[Header] = []
    ask = Opened.ask

    def counted(self: Opened, *, size: int, channels: int) -> Callable[[], torch.Tensor]:
        read.append(self.header)
        return ask(self, size=size, channels=channels)

    monkeypatch.setattr(Opened, "ask", counted)
    first, _ = opened(studies, 'one-per-study = true\ntake = "middle"')
    middle = list(studies.glob("*/axial/*-02.dcm"))
    assert len(read) == len(middle) == PATIENTS
    assert pixels(first) == {read_image(path, size=8, channels=1).pixels.numpy().tobytes() for path in middle}
    second, _ = opened(studies)
    assert len(read) == PATIENTS
    assert torch.equal(first.adaptation.inputs, second.adaptation.inputs)


def test_a_middle_that_cannot_be_read_gives_way_and_every_pass_chooses_the_same(studies: Path) -> None:
    """The first pass finds it out, the second knows it: neither may change which rows there are."""
    for path in studies.glob("p*/axial/*-02.dcm"):
        path.write_bytes(path.read_bytes()[:-100])
    choice = 'one-per-study = true\ntake = "middle"'
    passes = [opened(studies, choice) for _ in range(2)]
    assert (
        pixels(passes[0][0])
        == pixels(passes[1][0])
        == {
            read_image(path, size=8, channels=1).pixels.numpy().tobytes()
            for path in studies.glob("*/axial/*-03.dcm")
        }
    )
    left = {"truncated": 1, "another series": 3, "another image of its series": 3}
    assert passes[0][1] == passes[1][1] == {reason: PATIENTS * count for reason, count in left.items()}


def test_another_choice_judges_every_file_anew(studies: Path) -> None:
    """What the last choice left out comes back."""
    opened(studies, 'description = ["bone"]')
    hospital, _ = opened(studies, 'description = ["*axial*"]')
    assert hospital.census.accepted == PATIENTS * 5


@pytest.mark.parametrize(
    ("series", "told"),
    [
        ("thickness = [3, 1]", r"images.toml: series must have a thickness of \[least, most\]"),
        ('take = "volume"', "images.toml: series.take must be 'every' or 'middle'"),
        ('descripton = ["x"]', "series.descripton is not a known key; did you mean description?"),
    ],
)
def test_a_wrong_choice_is_one_clear_error(studies: Path, series: str, told: str) -> None:
    """Which file, which key, what to do."""
    with pytest.raises(ConfigError, match=told):
        opened(studies, series)


def by_event(raw: Dataset, shown: Dataset) -> None:
    """Let both name the irradiation event."""
    raw.IrradiationEventUID = shown.IrradiationEventUID = uid.generate_uid()


def by_source(raw: Dataset, shown: Dataset) -> None:
    """Let the one refer to the other."""
    source = Dataset()
    source.ReferencedSOPInstanceUID = raw.SOPInstanceUID
    shown.SourceImageSequence = [source]
    raw.AcquisitionTime, shown.AcquisitionTime = "101500", "101501"


def by_view(raw: Dataset, shown: Dataset) -> None:
    """Let study, side, view and time be the same."""
    for one in (raw, shown):
        one.ImageLaterality, one.ViewPosition, one.AcquisitionTime = "L", "CC", "101500"


def another(raw: Dataset, shown: Dataset) -> None:
    """Make two exposures of one study of them."""
    by_view(raw, shown)
    raw.AcquisitionTime = "101700"


@pytest.mark.parametrize(
    ("related", "cases"),
    [(by_event, 1), (by_source, 1), (by_view, 1), (another, 2)],
    ids=["by event", "by source", "by view", "another"],
)
def test_an_exposure_for_processing_and_for_presentation_is_one_case(
    tmp_path: Path, related: Callable[[Dataset, Dataset], None], cases: int
) -> None:
    """The one for presentation counts; a raw image that stands alone counts as well."""
    chance, rows = np.random.default_rng(0), ["StudyInstanceUID,finding"]
    classes = (
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
    )
    for patient in range(PATIENTS):
        study = uid.generate_uid()
        pair = [
            dataset(
                chance.integers(0, 4096, (12, 12)).astype(np.uint16),
                SOPClassUID=kind,
                StudyInstanceUID=study,
                PatientID=f"Secret^{patient}",
            )
            for kind in classes
        ]
        related(*pair)
        for place, image in enumerate(pair if patient else pair[:1]):
            image.save_as(tmp_path / f"{patient}-{place}.dcm", enforce_file_format=True)
        rows.append(f"{study},{TASK.classes[patient % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    give_key(tmp_path)
    for _ in range(2):
        hospital, reasons = opened(tmp_path)
        assert hospital.census.accepted == 1 + (PATIENTS - 1) * cases
        assert reasons == ({"for processing": PATIENTS - 1} if cases == 1 else {})
    shown = {read_image(tmp_path / f"{patient}-1.dcm", size=8, channels=1) for patient in range(1, PATIENTS)}
    assert {one.pixels.numpy().tobytes() for one in shown} <= pixels(hospital)


@pytest.mark.parametrize(
    ("elements", "place"),
    [
        ({"InstanceNumber": 7}, 7.0),
        ({"InstanceNumber": 7, "ImagePositionPatient": [0, 0, 3]}, 7.0),
        (
            {
                "InstanceNumber": 7,
                "ImagePositionPatient": [10, 20, 30],
                "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
            },
            -10.0,
        ),
        ({}, 0.0),
    ],
)
def test_a_slice_lies_where_its_position_says(tmp_path: Path, elements: dict[str, Any], place: float) -> None:
    """Along the normal of its plane, else by its number."""
    write(tmp_path / "a.dcm", np.eye(8, dtype=np.uint16), **elements)
    with open_instance(tmp_path / "a.dcm") as image:
        assert image.header.place == place
        assert Header.from_json(image.header.to_json()).to_json() == image.header.to_json()


@pytest.mark.parametrize("number", ["", "1\\2", "nan", "x"])
def test_a_number_that_is_none_costs_no_image(tmp_path: Path, number: str) -> None:
    """Nobody checks what scanners write into numbers that nobody needs."""
    image = dataset(np.eye(8, dtype=np.uint16), InstanceNumber=4242, SliceThickness=43.43)
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    for old in (b"4242", b"43.43 "):
        assert old in content
        content = content.replace(old, number.encode().ljust(len(old)))
    (tmp_path / "a.dcm").write_bytes(content)
    with open_instance(tmp_path / "a.dcm") as read:
        assert (read.header.place, read.header.SliceThickness) == (0.0, None)
