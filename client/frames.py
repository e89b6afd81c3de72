"""From a file's elements to the stored values of its middle frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array

from client import streams
from client.elements import Elements
from client.preflight import Reason, refuse

Stored = NDArray[np.integer[Any]]
"""One frame of stored values, [row, column] or [row, column, sample]."""

ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
OPTIONS = {
    "SamplesPerPixel": "samples_per_pixel",
    "PhotometricInterpretation": "photometric_interpretation",
    "PlanarConfiguration": "planar_configuration",
    "Rows": "rows",
    "Columns": "columns",
    "BitsAllocated": "bits_allocated",
    "BitsStored": "bits_stored",
    "PixelRepresentation": "pixel_representation",
}
JPEG_END = b"\xff\xd9"
"""EOI and EOC, with which JPEG streams of all kinds end."""
PLAIN = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


def middle_frame(elements: Elements) -> Stored:
    """Return the middle frame, decoded alone. Refused: no decoder takes it, or the pixel data end early."""
    _check_decoder(elements)
    index = int(elements.get("NumberOfFrames") or 1) // 2
    if _is_plain(elements):
        return _plain(elements, index)
    if _syntax(elements).is_encapsulated:
        return _encapsulated(elements, index)
    try:
        return pixel_array(elements.dataset, index=index, view_only=True)
    except (ValueError, RuntimeError):
        if len(elements.dataset.PixelData) < get_expected_length(elements.dataset):
            raise refuse(Reason.TRUNCATED) from None
        raise


def _syntax(elements: Elements) -> uid.UID:
    return uid.UID(elements.file_meta.TransferSyntaxUID)


def _check_decoder(elements: Elements) -> None:
    """Raise Refused where no decoder here takes the transfer syntax at this depth (PS3.5, annex A)."""
    syntax = _syntax(elements)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise refuse(Reason.DECODER_MISSING, "Decompress the file; no decoder exists.") from None
    # GDCM declines these two; only libjpeg (GPL-3) decodes them.
    extended = syntax == uid.JPEGExtended12Bit and elements.BitsStored > 8
    odd_jpeg_ls = syntax in uid.JPEGLSTransferSyntaxes and elements.BitsStored in (6, 7)
    plugins = decoder.available_plugins if syntax.is_encapsulated else ()
    if not decoder.is_available or ((extended or odd_jpeg_ls) and "pylibjpeg" not in plugins):
        raise refuse(Reason.DECODER_MISSING)


def _is_plain(elements: Elements) -> bool:
    """Return whether the frame lies in the file as an array of whole numbers, one a pixel, as it should."""
    numbers = [elements.get(name) for name in ("Rows", "Columns", "BitsAllocated", "BitsStored")]
    if not elements.left or not all(isinstance(number, int) for number in numbers):
        return False
    rows, columns, allocated, stored = numbers
    frames = int(elements.get("NumberOfFrames") or 1)
    return (
        _syntax(elements) in PLAIN
        and elements.get("SamplesPerPixel") == 1
        and elements.get("PhotometricInterpretation") in ONE_SAMPLE
        and allocated in (8, 16, 32)
        and 1 <= stored <= allocated
        and frames >= 1
        and frames * rows * columns * allocated // 8 <= elements.left
        and not any(name in elements for name in ("FloatPixelData", "DoubleFloatPixelData"))
        and elements.get("PixelRepresentation") in (0, 1)
    )


def _plain(elements: Elements, index: int) -> Stored:
    """Return a frame as it lies in the file, with bits beyond those stored cleared (PS3.5, section 8.1.1)."""
    allocated, unused = elements.BitsAllocated, elements.BitsAllocated - elements.BitsStored
    frame = np.empty(
        (elements.Rows, elements.Columns), f"<{'ui'[elements.PixelRepresentation]}{allocated // 8}"
    )
    elements.read_left(index * frame.nbytes, frame)
    if unused:
        np.left_shift(frame, unused, out=frame)
        np.right_shift(frame, unused, out=frame)
    return frame


def _encapsulated(elements: Elements, index: int) -> Stored:
    """Return a compressed frame, decoded, once what it says of itself has been compared with the header."""
    syntax, stream = _syntax(elements), elements.get("PixelData") or elements.dataset.PixelData
    frame = get_frame(stream, index, number_of_frames=int(elements.get("NumberOfFrames") or 1))
    if not streams.fits(frame, syntax, elements):
        raise refuse(
            Reason.UNREADABLE, "Export the file again: its header is of another image than its pixels."
        )
    try:
        return get_decoder(syntax).as_array(stream, index=index, **_options(elements))[0]
    except (ValueError, RuntimeError):
        cut_off = syntax != uid.RLELossless and not frame.rstrip(b"\0").endswith(JPEG_END)
        if cut_off:
            raise refuse(Reason.TRUNCATED) from None
        raise


def _options(elements: Elements) -> dict[str, Any]:
    """Return what pydicom's decoders are told of an image, as its `as_pixel_options` does of a data set."""
    if "FloatPixelData" in elements or "DoubleFloatPixelData" in elements:
        raise refuse(Reason.UNREADABLE)
    options = {name: elements.get(keyword) for keyword, name in OPTIONS.items() if keyword in elements}
    options["number_of_frames"] = elements.get("NumberOfFrames") or 1
    if "ExtendedOffsetTable" in elements:
        options["extended_offsets"] = elements.ExtendedOffsetTable, elements.ExtendedOffsetTableLengths
    return options | {"pixel_keyword": "PixelData"}
