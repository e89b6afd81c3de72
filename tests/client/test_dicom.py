"""From DICOM files to tensors, against pydicom's own processing and its bundled files."""

from __future__ import annotations

import logging
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence

from client.dicom import read_image
from common.errors import Refused
from tests.client.dicom_files import dataset, write

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shown(path: Path, size: int = 64, channels: int = 1) -> torch.Tensor:
    """Return the pixels read from `path`."""
    return read_image(path, size=size, channels=channels).pixels


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1, 2, 400.5, 4096])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -1024), (-2, 10)])
def test_rescale_and_window_equal_pydicom(
    tmp_path: Path, function: str, width: float, slope: float, intercept: float
) -> None:
    """Rescale and window give pydicom's float64 result, scaled from its output range to [0, 1]."""
    image = write(
        tmp_path / "a.dcm",
        RAMP,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=2048 * slope + intercept,
        WindowWidth=width,
        VOILUTFunction=function,
    )
    with np.errstate(over="ignore"):  # far below a narrow sigmoid, where 1 / (1 + inf) is 0 as it should be
        reference = apply_windowing(apply_modality_lut(RAMP, image), image)
    ends = (0 * slope + intercept, (2**16 - 1) * slope + intercept)
    expected = (reference - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), expected, atol=1e-5)


def lut(entries: int, first: int, bits: int, values: list[int]) -> Dataset:
    """Return an item of a LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, first, bits])
    item.add_new("LUTData", "US", values)
    return item


def test_voi_lut_equals_pydicom(tmp_path: Path) -> None:
    """A 12-bit VOI LUT, which goes before a window, gives pydicom's entries over 2**12 - 1."""
    values = list(range(4095, -1, -2))
    item = lut(2048, 100, 12, values)
    image = write(tmp_path / "a.dcm", RAMP, VOILUTSequence=Sequence([item]), WindowCenter=5, WindowWidth=3)
    expected = apply_voi_lut(RAMP, image) / (2**12 - 1)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), expected, atol=1e-6)


def test_modality_lut_equals_pydicom_then_its_own_range(tmp_path: Path) -> None:
    """Values through a modality LUT are scaled by their own range where no window is given."""
    item = lut(256, 0, 16, [value**2 for value in range(256)])
    item.ModalityLUTType = "US"
    image = write(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=Sequence([item]))
    reference = apply_modality_lut(RAMP.astype(np.int64), image).astype(float)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), reference / reference.max(), atol=1e-6)


@pytest.mark.parametrize("slope", [2, -2])
def test_without_a_window_the_image_spans_its_own_range(tmp_path: Path, slope: float) -> None:
    """Darkest modality value 0, brightest 1; invalid windows, which some devices write, count as none."""
    signed = RAMP.astype(np.int16) - 500
    write(tmp_path / "a.dcm", signed, RescaleSlope=slope, RescaleIntercept=7, WindowCenter=0, WindowWidth=0)
    values = slope * signed.astype(float)
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), expected, atol=1e-6)


def test_monochrome1_is_the_negative_of_monochrome2(tmp_path: Path) -> None:
    """Both polarities of the same stored values add up to 1 everywhere."""
    write(tmp_path / "one.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    write(tmp_path / "two.dcm", RAMP)
    total = shown(tmp_path / "one.dcm") + shown(tmp_path / "two.dcm")
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("polarity", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME1", "LIN OD", True),
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_the_presentation_shape_tells_what_is_white(
    tmp_path: Path, polarity: str, shape: str | None, inverted: bool
) -> None:
    """As dcmtk 3.6.7 shows each of these; without a shape, or with a printer's, polarity tells."""
    told = {"PresentationLUTShape": shape} if shape else {}
    write(tmp_path / "plain.dcm", RAMP)
    write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation=polarity, **told)
    plain, mine = shown(tmp_path / "plain.dcm"), shown(tmp_path / "a.dcm")
    torch.testing.assert_close(mine, 1 - plain if inverted else plain)


def test_pixel_padding_is_black_and_leaves_the_range_alone(tmp_path: Path) -> None:
    """Padding far below the measured values becomes 0, and the measured ones still span [0, 1]."""
    pixels = RAMP.astype(np.int16)
    pixels[:8] = -2000
    for polarity in ("MONOCHROME1", "MONOCHROME2"):
        write(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000, PhotometricInterpretation=polarity)
        result = shown(tmp_path / "a.dcm")[0]
        assert not result[:8].any()
        assert (float(result[8:].min()), float(result[8:].max())) == (0, 1)


@pytest.mark.parametrize(("value", "kind"), [(-2000, np.int16), (63536, np.int16), (-2000, np.uint16)])
def test_padding_is_of_the_pixels_own_sign(tmp_path: Path, value: int, kind: type) -> None:
    """Whether its element says US or SS: a device, or a reader of implicit VR, may have chosen the other."""
    pixels = RAMP.astype(np.int16)
    pixels[:, :8] = -2000
    image = dataset(pixels.astype(kind))
    image.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    result = shown(tmp_path / "a.dcm")[0]
    assert not result[:, :8].any()
    assert (float(result[:, 8:].min()), float(result[:, 8:].max())) == (0, 1)


@pytest.mark.parametrize(("first", "vr"), [(-1000, "SS"), (64536, "US")])
def test_a_lookup_tables_first_value_is_of_the_sign_of_what_it_maps(
    tmp_path: Path, first: int, vr: str
) -> None:
    """Of signed pixels, and of unsigned ones that a rescale makes negative."""
    item = lut(1001, 0, 16, [round(65535 * (at / 1000) ** 2) for at in range(1001)])
    item.add_new("LUTDescriptor", vr, [1001, first, 16])
    values = np.linspace(-1000, 0, 4096).reshape(64, 64).round().astype(np.int16)
    expected = ((values + 1000) / 1000.0) ** 2
    write(tmp_path / "signed.dcm", values, VOILUTSequence=Sequence([item]))
    stored = (values + 1000).astype(np.uint16)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    write(tmp_path / "rescaled.dcm", stored, VOILUTSequence=Sequence([item]), **rescaled)
    for name in ("signed.dcm", "rescaled.dcm"):
        np.testing.assert_allclose(shown(tmp_path / name)[0].numpy(), expected, atol=1e-4)


def test_entries_of_eight_bits_may_stand_two_in_a_word(tmp_path: Path) -> None:
    """The first in the low byte (PS3.3 C.11.2.1.1); a table that ends early is refused."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", bytes(range(255, -1, -1)))
    pixels = (RAMP // 16).astype(np.uint8)
    write(tmp_path / "a.dcm", pixels, VOILUTSequence=Sequence([item]))
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), 1 - pixels / 255, atol=1e-6)
    item.LUTData = bytes(100)
    write(tmp_path / "a.dcm", pixels, VOILUTSequence=Sequence([item]))
    with pytest.raises(Refused, match="ends early"):
        shown(tmp_path / "a.dcm")


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("scale", [256, 1])
def test_a_palettes_entries_have_the_files_byte_order(
    tmp_path: Path, syntax: uid.UID, bits: int, scale: int
) -> None:
    """Of 8 bits in pairs, of 16, and of 8 in a table of 16, as old devices have it: the same ramp."""
    image = dataset((RAMP // 16).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    image.file_meta.TransferSyntaxUID = syntax
    order = "<u2" if syntax == uid.ExplicitVRLittleEndian else ">u2"
    entries = np.arange(256)
    data = (
        (entries * scale).astype(order) if bits == 16 else entries.astype(np.uint8).view("<u2").astype(order)
    )
    for colour in ("Red", "Green", "Blue"):
        image.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        image.add_new(f"{colour}PaletteColorLookupTableData", "OW", data.tobytes())
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = (RAMP // 16) * (256 / 65535 if (bits, scale) == (16, 256) else 1 / 255)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm")[0].numpy(), expected, atol=1e-5)


def test_a_rescale_beyond_float32_is_no_trap(tmp_path: Path) -> None:
    """With a slope of 1e-40 every modality value is 0, which this window shows at 0.4."""
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleIntercept": 0}
    write(tmp_path / "a.dcm", RAMP, RescaleSlope="1e-40", **window)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm").numpy(), 160 / 399, atol=1e-6)


def headless(content: bytes) -> dict[str, bytes]:
    """Return a file as exports without a preamble, and without file meta information, have it."""
    image = dcmread(BytesIO(content))
    meta, bare = DicomBytesIO(), DicomBytesIO()
    write_file_meta_info(meta, image.file_meta)
    bare.is_implicit_VR, bare.is_little_endian = map(bool, image.original_encoding)
    write_dataset(bare, image)
    return {"whole": content, "meta alone": meta.getvalue() + bare.getvalue(), "bare": bare.getvalue()}


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_data_set_without_its_file_header_is_read(tmp_path: Path, syntax: uid.UID) -> None:
    """As scanners' own exports are; a text file is no DICOM all the same."""
    image = dataset(RAMP)
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = shown(tmp_path / "a.dcm")
    for content in headless((tmp_path / "a.dcm").read_bytes()).values():
        (tmp_path / "b.dcm").write_bytes(content)
        assert torch.equal(shown(tmp_path / "b.dcm"), expected)
    (tmp_path / "b.dcm").write_text("path,finding\n" * 100)
    with pytest.raises(Refused, match="not DICOM"):
        shown(tmp_path / "b.dcm")


@pytest.mark.parametrize(
    "elements",
    [
        {"SamplesPerPixel": None},
        {"PixelSpacing": "0.5"},
        {"WindowCenter": "40.25", "WindowWidth": "80.25"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6"},
        {"SOPClassUID": uid.RTImageStorage},
        {"SOPClassUID": uid.DigitalIntraOralXRayImageStorageForPresentation},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_what_devices_leave_out_or_write_otherwise_is_read_as_if_not_there(
    tmp_path: Path, elements: dict[str, str | None]
) -> None:
    """A missing number of samples, one spacing for two, a decimal comma, retired and rarer classes."""
    write(tmp_path / "a.dcm", RAMP)
    image = dataset(RAMP)
    for keyword, value in elements.items():
        if value is None:
            del image[keyword]
        else:
            setattr(image, keyword, value)
    image.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    content = (tmp_path / "b.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(content.replace(b"0.25", b"0,25"))
    assert torch.equal(shown(tmp_path / "b.dcm"), shown(tmp_path / "a.dcm"))


def test_an_instance_named_in_the_file_header_alone_has_that_name(tmp_path: Path) -> None:
    """Without an element of the data set's own."""
    image = write(tmp_path / "a.dcm", RAMP)
    name = image.SOPInstanceUID
    image.file_meta.MediaStorageSOPInstanceUID = name
    del image.SOPInstanceUID
    image.save_as(tmp_path / "a.dcm")
    assert read_image(tmp_path / "a.dcm", size=8, channels=1).header.SOPInstanceUID == name


def test_pixel_data_of_length_0_are_no_pixels(tmp_path: Path) -> None:
    """As exports of metadata alone have them."""
    write(tmp_path / "a.dcm", RAMP, PixelData=b"")
    with pytest.raises(Refused, match="no pixels"):
        shown(tmp_path / "a.dcm")


def test_a_stream_without_its_end_is_truncated(tmp_path: Path) -> None:
    """A JPEG 2000 codestream that lacks its last two bytes is not shown as another picture."""
    stream = BytesIO()
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(stream, format="JPEG2000", no_jp2=True)
    for content, reason in ((stream.getvalue(), ""), (stream.getvalue()[:-60], "truncated")):
        image = dataset((RAMP // 16).astype(np.uint8))
        image.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
        image.PixelData = encapsulate([content])
        image["PixelData"].VR = "OB"
        image["PixelData"].is_undefined_length = True
        image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        if reason:
            with pytest.raises(Refused, match=reason):
                shown(tmp_path / "a.dcm")
        else:
            assert shown(tmp_path / "a.dcm").isfinite().all()


def test_colour_becomes_luminance_and_grey_is_repeated(tmp_path: Path) -> None:
    """Pure red, green and blue weigh 0.299, 0.587 and 0.114; three channels of a grey image are equal."""
    pixels = np.zeros((3, 3, 3), np.uint8)
    pixels[np.arange(3), :, np.arange(3)] = 255
    write(tmp_path / "rgb.dcm", pixels)
    write(tmp_path / "grey.dcm", RAMP)
    torch.testing.assert_close(shown(tmp_path / "rgb.dcm", 3)[0, :, 0], torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(shown(tmp_path / "rgb.dcm", 3, 3)[:, :, 0], torch.eye(3))
    assert torch.equal(shown(tmp_path / "grey.dcm", 64, 3), shown(tmp_path / "grey.dcm").expand(3, -1, -1))


def test_palette_colour_goes_through_its_palette() -> None:
    """The bundled palette image gives three different channels within [0, 1]."""
    result = read_image(bundled("examples_palette.dcm"), size=64, channels=3).pixels
    assert not torch.equal(result[0], result[2])
    assert 0 <= float(result.min()) < float(result.max()) <= 1


@pytest.mark.parametrize(
    ("shape", "elements", "expected"),
    [
        ((40, 80), {}, (16, 32)),
        ((80, 40), {}, (32, 16)),
        ((40, 80), {"PixelSpacing": [2, 1]}, (32, 32)),
        ((40, 40), {"PixelAspectRatio": [1, 2]}, (16, 32)),
    ],
)
def test_physical_proportions_are_kept(
    tmp_path: Path, shape: tuple[int, int], elements: dict[str, Any], expected: tuple[int, int]
) -> None:
    """A bright image fills height * pixel height by width * pixel width, centred, with 0 around."""
    pixels = np.full(shape, 9, np.uint16)
    write(tmp_path / "a.dcm", pixels, WindowCenter=0, WindowWidth=2, **elements)
    bright = shown(tmp_path / "a.dcm", 32)[0] > 0.5
    rows, columns = bright.any(1), bright.any(0)
    assert (int(rows.sum()), int(columns.sum())) == expected
    assert torch.equal(bright, bright.flip(0))
    assert torch.equal(bright, bright.flip(1))


@pytest.mark.parametrize("side", [128, 97])
def test_resampling_keeps_the_mean(tmp_path: Path, side: int) -> None:
    """Antialiasing averages: shrinking fine noise keeps its mean (0.5 +- 5 standard errors of a uniform)."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (side, side)).astype(np.uint16)
    write(tmp_path / "a.dcm", pixels, WindowCenter=2**15, WindowWidth=2**16)
    result = shown(tmp_path / "a.dcm", 8)
    assert abs(float(result.mean()) - 0.5) < 5 * (1 / 12) ** 0.5 / side
    assert float(result.std()) < 0.1


def test_the_middle_frame_is_read(tmp_path: Path) -> None:
    """Of three frames the second, of which only the corner is bright."""
    frames = np.zeros((3, 8, 8), np.uint16)
    frames[1, 0, 0] = 1
    image = dataset(frames[0], SOPClassUID=uid.UltrasoundMultiFrameImageStorage, NumberOfFrames=3)
    image.PixelData = frames.tobytes()
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert torch.equal(shown(tmp_path / "a.dcm", 8)[0], torch.from_numpy(frames[1].astype(np.float32)))


def bundled(name: str) -> Path:
    """Return one of the files that come with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_every_lossless_encoding_of_an_image_reads_the_same(name: str) -> None:
    """The same MR slice in six encodings equals its plain explicit little endian file bit for bit."""
    assert torch.equal(shown(bundled(name)), shown(bundled("MR_small.dcm")))


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_jpeg_gdcm.dcm"]
)
def test_jpeg_colour_reads_as_the_uncompressed_original(name: str) -> None:
    """JPEG in YBR or RGB stays within a few grey levels of the same picture stored with RLE."""
    difference = shown(bundled(name), 50, 3) - shown(bundled("SC_rgb_rle.dcm"), 50, 3)
    assert float(difference.abs().mean()) < 3 / 255


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_meta.dcm", "not DICOM"),
        ("test-SR.dcm", "unsupported SOP class"),
        ("priv_SQ.dcm", "no pixels"),
        ("MR_truncated.dcm", "truncated"),
        ("JPGExtended.dcm", "decoder missing"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_its_reason(name: str, reason: str) -> None:
    """Each fault of a bundled file has its own reason and a remedy."""
    with pytest.raises(Refused) as refusal:
        read_image(bundled(name), size=8, channels=1)
    assert refusal.value.reason == reason
    assert refusal.value.remedy


def test_damage_anywhere_is_refused_and_never_raised(tmp_path: Path) -> None:
    """A file cut after any number of bytes, or with any 64 bytes overwritten, is read or Refused."""
    whole = bundled("MR_small_RLE.dcm").read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(150):
        place = int(chance.integers(len(whole)))
        torn = (
            whole[:place] if chance.random() < 0.5 else whole[:place] + chance.bytes(64) + whole[place + 64 :]
        )
        (tmp_path / "torn.dcm").write_bytes(torn)
        with suppress(Refused):
            assert shown(tmp_path / "torn.dcm", 8).shape == (1, 8, 8)


def test_identifiers_show_neither_in_repr_nor_in_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Identifiers are there to be used, but no text tells them, even where pydicom would quote one."""
    path = tmp_path / "a.dcm"
    write(path, RAMP, PatientID="Somebody", AccessionNumber="ACC1", PatientName="Q" * 64)
    path.write_bytes(path.read_bytes().replace(b"Q" * 64, b"\xff" * 64))
    with caplog.at_level(logging.DEBUG):
        image = read_image(path, size=8, channels=1)
    assert (image.header.PatientID, image.header.AccessionNumber) == ("Somebody", "ACC1")
    assert image.header.SOPInstanceUID == dcmread(path).SOPInstanceUID
    assert "Somebody" not in repr(image) + caplog.text
    assert image.header.SOPInstanceUID not in repr(image)


def test_an_impossible_rescale_is_refused(tmp_path: Path) -> None:
    """RescaleSlope 0 would make every pixel the same; it is unreadable, with a remedy of its own."""
    write(tmp_path / "a.dcm", RAMP, RescaleSlope=0, RescaleIntercept=0)
    with pytest.raises(Refused, match=r"unreadable.*RescaleSlope"):
        read_image(tmp_path / "a.dcm", size=8, channels=1)
