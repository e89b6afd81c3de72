"""What a compressed frame says of itself, read before any decoder meets it.

A decoder that trusts the DICOM header over a stream of another size ends in an exception, or takes the
process with it. The first bytes of every encoding tell the stream's own rows, columns, samples and bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import Dataset, uid
from pydicom.uid import UID

from client.elements import Elements

SOI, SOC = b"\xff\xd8", b"\xff\x4f\xff\x51"
"""Beginnings of JPEG and JPEG-LS streams (ITU-T T.81, B.1; T.87, C.1), and of JPEG 2000 (T.800, A.4)."""
FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame's own header (T.81, table B.1; T.87, C.1.1)."""
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


@dataclass(frozen=True)
class Stream:
    """A compressed frame's own idea of its size."""

    rows: int
    """0: told only at the end."""
    columns: int
    samples: int
    bits: int

    def fits(self, header: Elements | Dataset) -> bool:
        """Return whether it is the image that a header describes; more bits than are allocated do not fit."""
        return (
            self.rows in (0, int(header.Rows))
            and self.columns == int(header.Columns)
            and self.samples == int(header.SamplesPerPixel)
            and self.bits <= int(header.BitsAllocated)
        )


def fits(frame: bytes, syntax: UID, header: Elements | Dataset) -> bool:
    """Return whether a compressed frame is of the image that its header describes, as far as it tells."""
    if syntax == uid.RLELossless:
        return _segments_fit(frame, int(header.SamplesPerPixel) * -(-int(header.BitsAllocated) // 8))
    stream = _jpeg(frame) if frame.startswith(SOI) else _jpeg_2000(frame)
    return stream is None or stream.fits(header)


def _jpeg(frame: bytes) -> Stream | None:
    """Return what the first frame header of a JPEG or JPEG-LS stream says; None where there is none."""
    place = len(SOI)
    while place + 10 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
        elif marker in STANDALONE:
            place += 2
        elif marker in FRAMES:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            return Stream(rows, columns, samples, bits)
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None


def _jpeg_2000(frame: bytes) -> Stream | None:
    """Return what the SIZ segment says (T.800, A.5.1); None where there is none."""
    place = frame.find(SOC, 0, 4096)  # boxes may stand before it
    if place < 0 or place + 43 > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", frame, place + 8)
    (samples,) = struct.unpack_from(">H", frame, place + 40)
    return Stream(bottom - top, right - left, samples, (frame[place + 42] & 0x7F) + 1)


def _segments_fit(frame: bytes, expected: int) -> bool:
    """Return whether the header of RLE segments is of so many, one after the other (PS3.5, annex G.5)."""
    if len(frame) < 64:
        return False
    count, *offsets = struct.unpack_from("<16I", frame)
    used = offsets[: min(count, 15)]
    return count == expected and used == sorted(set(used)) and used[0] == 64 and used[-1] < len(frame)
