"""From one DICOM file to one tensor: what a viewer would show, as float32 in [0, 1] on a square.

The file is opened and its header checked, the middle frame decoded, shown (`client.rendering`), and resampled
to the size that a network takes.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from jaxtyping import Float
from pydicom import Dataset, dcmread, uid
from pydicom.config import disable_value_validation
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array
from torch import Tensor

from client import streams
from client.header import Header
from client.preflight import Reason, check_header, refuse
from client.rendering import Stored, render
from client.resample import fit_square, with_channels
from common.errors import Refused

ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
PREAMBLE = 128
"""Bytes before the four of the prefix DICM (PS3.10, section 7.1)."""


@dataclass(frozen=True)
class Image:
    """One instance, ready to learn from; its identifiers never show in a text."""

    pixels: Float[Tensor, "channel height width"]
    """float32 in [0, 1]; 0 is black, also outside the image."""
    header: Header


class Instance:
    """A DICOM file whose header has passed, open within `open_instance`; pixels are read when asked for."""

    def __init__(self, file: BufferedReader) -> None:
        self._dataset = _read(file)
        check_header(self._dataset, pixels_follow=bool(self._dataset.get("PixelData")))
        self.header = Header.of(self._dataset)

    @property
    def shape(self) -> tuple[int, int]:
        """The image's rows and columns."""
        return int(self._dataset.Rows), int(self._dataset.Columns)

    @property
    def aspect(self) -> float:
        """A pixel's height over its width."""
        return _pixel_aspect(self._dataset)

    def pixels(self, *, size: int, channels: int) -> Float[Tensor, "channel height width"]:
        """Return the image as float32 in [0, 1] on `size` x `size`; of several frames the middle one."""
        dataset = self._dataset
        _check_decoder(dataset)
        shown = with_channels(render(_middle_frame(dataset), dataset), channels)
        fitted = fit_square(shown, aspect=self.aspect, size=size)
        if not fitted.isfinite().all():
            raise refuse(Reason.UNREADABLE, "Export the file again: its rescale and window give no numbers.")
        return fitted


@contextmanager
def open_instance(path: Path | str) -> Iterator[Instance]:
    """Open the file at `path` and read its header; raises Refused, whatever is wrong with it."""
    with _refusing(), open(path, "rb") as file:
        yield Instance(file)


def read_image(path: Path, *, size: int, channels: int) -> Image:
    """Return the image in the file at `path`, resampled to `size` x `size` with 1 or 3 `channels`.

    Of several frames the middle one. Raises Refused with a reason of `client.preflight.REASONS`.
    """
    with open_instance(path) as instance:
        return Image(instance.pixels(size=size, channels=channels), instance.header)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn every fault into Refused in our own words, and silence pydicom, which quotes values."""
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except (Refused, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except InvalidDicomError:
        raise refuse(Reason.NOT_DICOM) from None
    except EOFError:
        raise refuse(Reason.TRUNCATED) from None
    except BaseException:  # a panic in a Rust decoder is no Exception
        raise refuse(Reason.UNREADABLE) from None
    finally:
        logger.disabled = was_disabled


def _read(file: BinaryIO) -> Dataset:
    """Return the file's data set, with or without the preamble and the file meta information before it.

    Scanners' own exports often lack these: a data set then begins with its first group, 0002 or 0008.
    """
    start = file.read(PREAMBLE + 4)
    file.seek(0)
    bare = start[PREAMBLE:] != b"DICM" and start[:2] in (b"\x02\x00", b"\x08\x00")
    try:
        dataset = dcmread(file, force=bare)
    except struct.error:
        raise refuse(Reason.TRUNCATED) from None
    meta, (implicit, little) = dataset.file_meta, dataset.original_encoding
    if "TransferSyntaxUID" not in meta:
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    if "SOPInstanceUID" not in dataset and "MediaStorageSOPInstanceUID" in meta:
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    if "SamplesPerPixel" not in dataset and str(dataset.get("PhotometricInterpretation")) in ONE_SAMPLE:
        dataset.SamplesPerPixel = 1
    return dataset


def _check_decoder(dataset: Dataset) -> None:
    """Raise Refused where no decoder here takes the transfer syntax at this depth (PS3.5, annex A)."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise refuse(Reason.DECODER_MISSING, "Decompress the file; no decoder exists.") from None
    # GDCM declines these two; only libjpeg (GPL-3) decodes them.
    extended = syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8
    odd_jpeg_ls = syntax in uid.JPEGLSTransferSyntaxes and dataset.BitsStored in (6, 7)
    plugins = decoder.available_plugins if syntax.is_encapsulated else ()
    if not decoder.is_available or ((extended or odd_jpeg_ls) and "pylibjpeg" not in plugins):
        raise refuse(Reason.DECODER_MISSING)


def _middle_frame(dataset: Dataset) -> Stored:
    """Return the middle frame, decoded alone; raises Refused where the pixel data ends early."""
    index = int(dataset.get("NumberOfFrames") or 1) // 2
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not streams.fits(_frame(dataset, index), syntax, dataset):
        raise refuse(
            Reason.UNREADABLE, "Export the file again: its header is of another image than its pixels."
        )
    try:
        return pixel_array(dataset, index=index, view_only=True)
    except (ValueError, RuntimeError):
        if _ends_early(dataset, index):
            raise refuse(Reason.TRUNCATED) from None
        raise


def _frame(dataset: Dataset, index: int) -> bytes:
    """Return a compressed frame as it stands in the file."""
    return get_frame(dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames") or 1))


def _ends_early(dataset: Dataset, index: int) -> bool:
    """Return whether pixel data are fewer than the header says, or a JPEG stream lacks its end (EOI, EOC)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return len(dataset.PixelData) < get_expected_length(dataset)
    frame = _frame(dataset, index)
    return syntax != uid.RLELossless and not frame.rstrip(b"\0").endswith(b"\xff\xd9")


def _pixel_aspect(dataset: Dataset) -> float:
    """Return a pixel's height over its width (PS3.3 C.7.6.3.1.7, 10.7.1.1); 1 where not told."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        spacing = dataset.get(keyword)
        if isinstance(spacing, Sequence) and len(spacing) == 2 and min(spacing) > 0:
            return float(spacing[0]) / float(spacing[1])
    return 1.0
