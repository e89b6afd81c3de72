"""What is found in a folder, what a header says, and what is told of refusals."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from client.preflight import (
    REASONS,
    REMEDIES,
    SUPPORTED_SOP_CLASSES,
    Quarantined,
    check_header,
    find_files,
    write_quarantine,
)
from common.errors import Refused
from tests.client.dicom_files import dataset

PIXELS = np.zeros((4, 4), np.uint16)


def test_every_reason_has_a_remedy() -> None:
    """Nobody is told what is wrong without what to do."""
    assert set(REASONS) == set(REMEDIES)
    assert all(remedy.endswith(".") for remedy in REMEDIES.values())


@pytest.mark.parametrize("SOPClassUID", sorted(SUPPORTED_SOP_CLASSES))
def test_supported_classes_pass(SOPClassUID: str) -> None:
    """Each class of the list is a storage class of the Standard, and passes."""
    assert uid.UID(SOPClassUID).name.endswith(("Image Storage", "Presentation", "Processing"))
    check_header(dataset(PIXELS, SOPClassUID=SOPClassUID), pixels_follow=True)


@pytest.mark.parametrize(
    "SOPClassUID",
    [
        uid.SegmentationStorage,
        uid.RTDoseStorage,
        uid.EnhancedCTImageStorage,
        uid.BasicTextSRStorage,
        "1.2.3",
        "",
    ],
)
def test_other_classes_are_refused(SOPClassUID: str) -> None:
    """Anything else, also an unknown or absent class, is refused as such."""
    with pytest.raises(Refused) as refusal:
        check_header(dataset(PIXELS, SOPClassUID=SOPClassUID), pixels_follow=True)
    assert refusal.value.reason == "unsupported SOP class"


def test_an_image_needs_pixels_and_its_own_identity() -> None:
    """Without pixel data, rows or SOPInstanceUID an image is refused by its header alone."""
    for image, follow, reason in (
        (dataset(PIXELS), False, "no pixels"),
        (dataset(PIXELS, Rows=None), True, "no pixels"),
        (dataset(PIXELS, SOPInstanceUID=""), True, "unreadable"),
    ):
        with pytest.raises(Refused) as refusal:
            check_header(image, pixels_follow=follow)
        assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen save"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, "reformatted"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"]}, "reformatted"),
        ({"BurnedInAnnotation": "YES"}, "burned-in text"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "BurnedInAnnotation": "NO"}, ""),
        ({"ImageType": "ORIGINAL"}, ""),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, ""),
    ],
)
def test_what_stands_beside_a_studys_images_is_none_of_them(elements: dict[str, Any], reason: str) -> None:
    """A label of a study is for its images: not for scouts, dose sheets, or what was computed from them."""
    image = dataset(PIXELS, **elements)
    if not reason:
        check_header(image, pixels_follow=True)
        return
    with pytest.raises(Refused) as refusal:
        check_header(image, pixels_follow=True)
    assert refusal.value.reason == reason


def test_files_are_found_in_order_without_what_is_ours(tmp_path: Path) -> None:
    """labels.csv at the root, dot files and the state folder are no candidates; everything else is."""
    kept = ["IM1", "a/b/c.dcm", "a/labels.csv", "z.txt"]
    for name in [*kept, "labels.csv", ".DS_Store", ".git/x", "state/site.key"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    found = find_files(tmp_path, tmp_path / "state")
    assert [file.relative for file in found] == sorted([*kept, "lost"])
    assert [file.size for file in found if file.relative != "lost"] == [3] * 4


def test_a_file_name_in_quarantine_is_no_formula(tmp_path: Path) -> None:
    """A spreadsheet that opens quarantine.csv shows it, and computes nothing."""
    write_quarantine(tmp_path, [Quarantined("=cmd|' /C calc'!A0", "not DICOM", "")])
    assert (tmp_path / "quarantine.csv").read_text().splitlines()[1] == "'=cmd|' /C calc'!A0,not DICOM,"


def test_quarantine_is_replaced_whole(tmp_path: Path) -> None:
    """The file holds the last list only, commas and all, and no temporary file stays behind."""
    write_quarantine(tmp_path, [Quarantined("old", "no pixels", "")])
    write_quarantine(tmp_path, [Quarantined("a, b.dcm", "truncated", "Copy it, again.")])
    with (tmp_path / "quarantine.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "reason", "remedy"],
            ["a, b.dcm", "truncated", "Copy it, again."],
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.csv"]
