"""What compressed frames say of themselves is compared with the header before a decoder meets them."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID

from client import streams
from client.dicom import read_image
from common.errors import Refused
from tests.client.test_image_child import ENCODED

JPEG, JPEG_2000, RLE = uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless


@pytest.mark.parametrize(
    ("syntax", "keyword", "value"),
    [
        (JPEG, "Rows", 78),
        (JPEG, "Columns", 56),
        (JPEG, "SamplesPerPixel", 3),
        (JPEG_2000, "Rows", 64),
        (JPEG_2000, "Columns", 61),
        (JPEG_2000, "SamplesPerPixel", 3),
        (RLE, "SamplesPerPixel", 3),
        (RLE, "BitsAllocated", 16),
    ],
)
def test_a_stream_of_another_image_than_its_header_never_meets_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: UID, keyword: str, value: int
) -> None:
    """It is refused with what is wrong; the same file with its own header is read."""
    image = dcmread(BytesIO(ENCODED[syntax.name]))
    image.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    assert read_image(tmp_path / "whole.dcm", size=32, channels=1).pixels.isfinite().all()
    setattr(image, keyword, value)
    image.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    monkeypatch.setattr(Decoder, "as_array", None)
    with pytest.raises(Refused, match="its header is of another image than its pixels"):
        read_image(tmp_path / "other.dcm", size=32, channels=1)


def header(rows: int, columns: int, samples: int = 1, bits: int = 8) -> Dataset:
    """Return a header that describes such an image."""
    told = Dataset()
    told.Rows, told.Columns, told.SamplesPerPixel, told.BitsAllocated = rows, columns, samples, bits
    return told


def frame_header(marker: int, rows: int, columns: int, samples: int = 1, bits: int = 8) -> bytes:
    """Return a JPEG or JPEG-LS stream up to its frame's header, after a comment and fill bytes."""
    comment = b"\xff\xfe" + struct.pack(">H", 6) + b"hi\xff\xc0"
    body = struct.pack(">HBHHB", 8 + 3 * samples, bits, rows, columns, samples) + b"\x01\x11\x00" * samples
    return b"\xff\xd8" + comment + b"\xff\xff" + bytes([0xFF, marker]) + body


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC3, 0xF7])
def test_every_kind_of_jpeg_tells_its_size(marker: int) -> None:
    """Baseline, extended, progressive, lossless and JPEG-LS; a number of rows told later is none."""
    stream = frame_header(marker, 64, 70)
    assert streams.fits(stream, uid.JPEGLSLossless, header(64, 70))
    assert not streams.fits(stream, uid.JPEGLSLossless, header(70, 70))
    assert not streams.fits(stream, uid.JPEGLSLossless, header(64, 64))
    assert not streams.fits(stream, uid.JPEGLSLossless, header(64, 70, samples=3))
    assert streams.fits(frame_header(marker, 0, 70), uid.JPEGLSLossless, header(64, 70))
    assert not streams.fits(frame_header(marker, 64, 70, bits=12), uid.JPEGLSLossless, header(64, 70))
    assert streams.fits(frame_header(marker, 64, 70, bits=12), uid.JPEGLSLossless, header(64, 70, bits=16))


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8no marker at all", b"\xff\x4f\xff\x51\x00"])
def test_a_stream_that_says_nothing_is_its_decoders_to_judge(stream: bytes) -> None:
    """No catch-all: what cannot be compared is not refused here."""
    assert streams.fits(stream, JPEG, header(64, 70))


def test_segments_of_rle_stand_one_after_the_other_within_the_frame() -> None:
    """One for every byte of a sample (PS3.5, annex G.5)."""

    def frame(*offsets: int, count: int | None = None) -> bytes:
        table = [len(offsets) if count is None else count, *offsets, *[0] * (15 - len(offsets))]
        return struct.pack("<16I", *table) + bytes(40)

    grey = header(4, 4, bits=16)
    assert streams.fits(frame(64, 80), RLE, grey)
    for wrong in (
        frame(64),
        frame(64, 64),
        frame(80, 64),
        frame(64, 104),
        frame(66, 80),
        frame(count=2),
        b"",
    ):
        assert not streams.fits(wrong, RLE, grey)
