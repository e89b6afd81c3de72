"""Masks beside images: DICOM Segmentations and image files, resampled with their image, kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import torch
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from client.dataset import open_hospital
from client.dicom import open_instance
from client.masks import inside, read_mask
from client.preflight import Reason
from common.errors import DataError, Refused
from common.sections import Data, Task
from tests.client.dicom_files import write
from tests.conftest import give_key

TASK = Task(kind="segmentation", label="vessels", classes=("background", "vessel"))
PATIENTS = 12


def picture(size: int = 16, columns: int = 24) -> NDArray[np.uint16]:
    """Return an image with a bright rectangle."""
    pixels = np.zeros((size, columns), np.uint16)
    pixels[4:8, 6:18] = 1000
    return pixels


def save(path: Path, mask: NDArray[Any]) -> None:
    """Write a mask as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


def segmentation(image: Dataset, mask: NDArray[np.bool_], *labels: str) -> Segmentation:
    """Return a DICOM Segmentation of one or more segments `[row, column(, segment)]`."""
    layers = mask[..., None] if mask.ndim == 2 else mask
    descriptions = [
        SegmentDescription(
            number,
            label,
            codes.SCT.Tissue,
            codes.SCT.BloodVessel,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels, start=1)
    ]
    return Segmentation(
        [image],
        layers[None],
        highdicom.seg.SegmentationTypeValues.BINARY,
        descriptions,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Zamenis tests",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    )


def whole(path: Path, pixels: NDArray[np.uint16], patient: str = "P1") -> Dataset:
    """Write an image with everything that a Segmentation copies from it."""
    return write(
        path,
        pixels,
        PatientID=patient,
        Modality="CT",
        PatientName="Secret^Name",
        PatientBirthDate="",
        PatientSex="O",
        AccessionNumber="A1",
        StudyID="1",
        StudyDate="20260101",
        StudyTime="000000",
        ReferringPhysicianName="",
        SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[1, 1],
        SliceThickness=1,
        PositionReferenceIndicator="",
    )


def labelled(folder: Path, rows: list[str]) -> Path:
    """Give a hospital its labels, and a key, so that patients are always split alike."""
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    give_key(folder)
    return folder


def hospital(folder: Path) -> Path:
    """Write a hospital of images with PNG masks that are the bright rectangles themselves."""
    rows = ["path,vessels"]
    for patient in range(PATIENTS):
        pixels = np.roll(picture(), patient % 4, axis=0)
        write(folder / f"p{patient}.dcm", pixels, PatientID=f"Secret^{patient}")
        save(folder / "masks" / f"p{patient}.png", (pixels > 0) * 255)
        rows.append(f"p{patient}.dcm,masks/p{patient}.png")
    return labelled(folder, rows)


def test_a_mask_lies_where_its_image_does(tmp_path: Path) -> None:
    """Resampled together: bright pixels are vessel, padding and the rest are background."""
    found = open_hospital(hospital(tmp_path / "site"), Data(image_size=24), TASK)
    for side in (found.adaptation, found.test):
        assert side.labels.shape == (len(side), 24, 24)
        bright = side.inputs[:, 0] > 0.5
        assert (bright == (side.labels == 1)).float().mean() > 0.99
        assert bright.any()
    assert found.census.accepted == PATIENTS
    assert found.census.refused == {}
    assert set(found.test.strata.tolist()) == {0}


def test_masks_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is opened; a changed mask alone is read again."""
    folder = hospital(tmp_path / "site")
    first = open_hospital(folder, Data(image_size=24), TASK)
    opened: list[str] = []

    def watched(path: Path, *rest: Any, **more: Any) -> torch.Tensor:
        opened.append(Path(path).name)
        return read_mask(path, *rest, **more)

    monkeypatch.setattr("client.masks.read_mask", watched)
    again = open_hospital(folder, Data(image_size=24), TASK)
    assert opened == []
    assert again.digest == first.digest
    save(folder / "masks" / "p3.png", np.zeros((16, 24)))
    changed = open_hospital(folder, Data(image_size=24), TASK)
    assert opened == ["p3.png"]
    assert changed.digest != first.digest


def test_a_dicom_segmentation_is_read_by_its_segments_names(tmp_path: Path) -> None:
    """Segments may come in any order; what no segment covers is background."""
    pixels = picture()
    image = whole(tmp_path / "a.dcm", pixels)
    layers = np.stack([pixels > 0, np.roll(pixels > 0, 6, axis=0)], axis=2)
    segmentation(image, layers, "Vein", "Artery").save_as(tmp_path / "seg.dcm")
    with open_instance(tmp_path / "a.dcm") as instance:
        mask = read_mask(tmp_path / "seg.dcm", instance, ("none", "artery", "vein"), size=24)
    rows = mask[4:20]
    assert (rows[pixels > 0] == 2).all()
    assert (rows[np.roll(pixels > 0, 6, axis=0)] == 1).all()
    assert int((mask > 0).sum()) == 2 * int((pixels > 0).sum())


def test_a_segmentation_of_another_image_is_refused(tmp_path: Path) -> None:
    """It refers to images by their identifiers."""
    image = whole(tmp_path / "a.dcm", picture())
    whole(tmp_path / "b.dcm", picture(), "P2")
    segmentation(image, picture() > 0, "vessel").save_as(tmp_path / "seg.dcm")
    with open_instance(tmp_path / "b.dcm") as instance, pytest.raises(Refused) as refused:
        read_mask(tmp_path / "seg.dcm", instance, TASK.classes, size=24)
    assert refused.value.reason == Reason.UNFITTING_MASK
    assert "Secret" not in str(refused.value) + refused.value.remedy


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (None, Reason.NO_MASK),
        (np.zeros((4, 4)), Reason.UNFITTING_MASK),
        (np.zeros((16, 24, 3)), Reason.UNFITTING_MASK),
    ],
)
def test_a_bad_mask_leaves_its_image_out(tmp_path: Path, mask: NDArray[Any] | None, reason: Reason) -> None:
    """The other images stay; quarantine.csv names the image and what to do."""
    folder = hospital(tmp_path / "site")
    path = folder / "masks" / "p5.png"
    path.unlink()
    if mask is not None:
        save(path, mask)
    found = open_hospital(folder, Data(image_size=24), TASK)
    assert found.census.accepted == PATIENTS - 1
    assert found.census.refused == {str(reason): 1}
    assert "p5.dcm" in (folder / ".zamenis" / "quarantine.csv").read_text()


def test_a_mask_outside_the_folder_is_none(tmp_path: Path) -> None:
    """labels.csv names files of the hospital's own folder, and no others."""
    folder = hospital(tmp_path / "site")
    (folder / "masks" / "p5.png").rename(tmp_path / "elsewhere.png")
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace("masks/p5.png", "../elsewhere.png"))
    assert open_hospital(folder, Data(image_size=24), TASK).census.refused == {"no mask": 1}


def test_a_value_that_is_no_class_is_refused(tmp_path: Path) -> None:
    """With three classes a mask's values are their numbers."""
    folder = hospital(tmp_path / "site")
    save(folder / "masks" / "p5.png", (picture() > 0) * 3)
    task = Task(kind="segmentation", label="vessels", classes=("none", "artery", "vein"))
    for patient in range(PATIENTS):
        if patient != 5:
            save(folder / "masks" / f"p{patient}.png", (picture() > 0) * 2)
    found = open_hospital(folder, Data(image_size=24), task)
    assert found.census.refused == {"mask does not fit": 1}
    assert found.test.labels.max() == 2


def test_a_mask_belongs_to_its_classes(tmp_path: Path) -> None:
    """Asked for in another order, a segmentation is read anew: what is cached is of other numbers."""
    folder = tmp_path / "site"
    rows = ["path,vessels"]
    for patient in range(PATIENTS):
        image = whole(folder / f"p{patient}.dcm", picture(), f"Secret^{patient}")
        segmentation(image, picture() > 0, "artery").save_as(folder / f"seg{patient}.dcm")
        rows.append(f"p{patient}.dcm,seg{patient}.dcm")
    labelled(folder, rows)
    for order, number in ((("none", "artery", "vein"), 1), (("none", "vein", "artery"), 2)):
        task = Task(kind="segmentation", label="vessels", classes=order)
        assert open_hospital(folder, Data(image_size=24), task).test.labels.max() == number


def test_an_image_file_is_the_mask_of_one_image(tmp_path: Path) -> None:
    """Where labels.csv names studies, whose image it is of cannot be told."""
    folder = tmp_path / "site"
    rows = ["StudyInstanceUID,vessels"]
    for patient in range(PATIENTS):
        image = write(folder / f"p{patient}.dcm", picture(), PatientID=f"Secret^{patient}")
        save(folder / f"p{patient}.png", picture() > 0)
        rows.append(f"{image.StudyInstanceUID},p{patient}.png")
    labelled(folder, rows)
    with pytest.raises(DataError, match="12 mask does not fit"):
        open_hospital(folder, Data(image_size=24), TASK)


@pytest.mark.parametrize("cell", ["x" * 5000, "ring", "a\0b"])
def test_a_cell_that_is_no_path_leaves_one_image_out(tmp_path: Path, cell: str) -> None:
    """Too long, a link to itself, or with a NUL: whatever the file system says, the others stay."""
    folder = hospital(tmp_path / "site")
    (folder / "ring").symlink_to("ring")
    assert inside(folder, cell) is None
    if "\0" not in cell:
        labels = folder / "labels.csv"
        labels.write_text(labels.read_text().replace("masks/p5.png", cell))
        refused = open_hospital(folder, Data(image_size=24), TASK).census.refused
        assert refused["no mask"] == 1


@pytest.mark.parametrize("values", [np.full((16, 24), -1, np.int32), np.zeros((4000, 4000), np.uint8)])
def test_a_mask_is_checked_before_it_is_used(tmp_path: Path, values: NDArray[Any]) -> None:
    """No class is negative; another size is seen in the header, before anything is decoded."""
    write(tmp_path / "a.dcm", picture())
    Image.fromarray(values).save(tmp_path / "mask.tiff")
    with open_instance(tmp_path / "a.dcm") as instance, pytest.raises(Refused) as refused:
        read_mask(tmp_path / "mask.tiff", instance, TASK.classes, size=24)
    assert refused.value.reason == Reason.UNFITTING_MASK


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    """Its ringing would be foreground."""
    write(tmp_path / "a.dcm", picture())
    Image.fromarray(((picture() > 0) * 255).astype(np.uint8)).save(tmp_path / "mask.jpg")
    with open_instance(tmp_path / "a.dcm") as instance, pytest.raises(Refused):
        read_mask(tmp_path / "mask.jpg", instance, TASK.classes, size=24)
