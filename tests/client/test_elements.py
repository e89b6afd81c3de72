"""What a file's elements and frames are looked up as is what pydicom has, however the file is read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import dcmread, uid
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.pixels.utils import pixel_array

from client.elements import Elements
from client.frames import middle_frame
from common.errors import Refused
from tests.client.dicom_files import dataset, write

BUNDLED = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))


@pytest.mark.filterwarnings("ignore")
def test_every_value_is_that_of_pydicom() -> None:
    """Over all elements of pydicom's bundled files, of which some are damaged."""
    looked_up = 0
    for path in BUNDLED:
        try:
            expected = dcmread(path)
        except Exception:
            with path.open("rb") as file, pytest.raises(Exception):  # noqa: B017, PT011 - pydicom's own
                Elements(file, bare=False)
            continue
        with path.open("rb") as file:
            elements = Elements(file, bare=False)
            for tag in list(expected.keys()):
                keyword = keyword_for_tag(tag)
                if tag_for_keyword(keyword) == tag and keyword != "PixelData":
                    with suppress(NotImplementedError, ValueError):  # pydicom cannot tell it
                        value = expected[tag].value
                        assert keyword in elements
                        assert elements.get(keyword) == value, (path.name, keyword)
                        looked_up += 1
            assert elements.dataset.get("PixelData") == expected.get("PixelData")
            assert elements.get("PatientSpeciesDescription", "none") == "none"
    assert looked_up > 2000


@pytest.mark.filterwarnings("ignore")
def test_every_middle_frame_is_that_of_pydicom() -> None:
    """Over pydicom's bundled files: native ones read from their place, others decoded."""
    places = []
    for path in BUNDLED:
        with path.open("rb") as file, suppress(Refused):
            try:
                elements = Elements(file, bare=False)
                expected = dcmread(path)
                reference = pixel_array(expected, index=int(expected.get("NumberOfFrames") or 1) // 2)
            except Exception:  # noqa: S112 - no image, or none that pydicom reads
                continue
            places.append(elements.left)
            np.testing.assert_array_equal(middle_frame(elements), reference, err_msg=path.name)
    assert sum(left > 0 for left in places) > 10
    assert places.count(0) > 10


@pytest.mark.parametrize("kind", ["<u1", "<i1", "<u2", "<i2", "<u4"])
@pytest.mark.parametrize("unused", [0, 3])
def test_bits_beyond_those_stored_do_not_count(tmp_path: Path, kind: str, unused: int) -> None:
    """Of three frames of random bits the middle one, read as pydicom reads all."""
    frames = (
        np.random.default_rng(0).integers(0, 256, (3, 5, 8 * np.dtype(kind).itemsize), np.uint8).view(kind)
    )
    image = dataset(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    image.BitsStored -= unused
    image.HighBit -= unused
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with (tmp_path / "a.dcm").open("rb") as file:
        elements = Elements(file, bare=False)
        assert elements.left == frames.nbytes
        np.testing.assert_array_equal(middle_frame(elements), dcmread(tmp_path / "a.dcm").pixel_array[1])


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_values_are_the_same_in_every_encoding(tmp_path: Path, syntax: uid.UID) -> None:
    """Text of another character set, numbers out of the ordinary, several values, and none."""
    texts = {"SpecificCharacterSet": "ISO_IR 100", "PatientID": "Müller 7 ", "AccessionNumber": ""}
    numbers = {"WindowCenter": "1e3", "WindowWidth": ["+40", "80."], "ImageType": ["ORIGINAL", "PRIMARY"]}
    image = write(tmp_path / "explicit.dcm", np.eye(8, dtype=np.uint16), **texts, **numbers)
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    for name in ("explicit.dcm", "other.dcm"):
        with (tmp_path / name).open("rb") as file:
            elements = Elements(file, bare=False)
            assert elements.PatientID == "Müller 7"
            assert not elements.AccessionNumber
            assert (float(elements.WindowCenter), list(map(float, elements.WindowWidth))) == (1000, [40, 80])
            assert list(elements.ImageType) == ["ORIGINAL", "PRIMARY"]
            with pytest.raises(AttributeError, match="Rescale"):
                _ = elements.RescaleSlope
