"""From one DICOM file to one tensor: what a viewer would show, as float32 in [0, 1] on a square.

In the Standard's order (PS3.4 N.2): decode, modality transformation, values of interest, photometric
interpretation; then resampling to the size a network takes. Rescale and window are linear in nearly
every file, so they become one subtraction and one multiplication in place.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, uid
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import get_expected_length, pixel_array
from torch import Tensor

from client.preflight import Reason, check_header, refuse
from client.resample import fit_square, with_channels
from common.errors import Refused

Stored = NDArray[np.integer[Any]]
"""One frame of stored values, [row, column] or [row, column, sample]."""


class _Scratch(threading.local):
    """Memory for one frame as float32, kept per thread: fresh pages cost more than the arithmetic on them."""

    memory = torch.empty(0)

    def hold(self, frame: Stored) -> Float[Tensor, "*shape"]:
        """Return `frame` as float32; it stands until the next call of the same thread."""
        if self.memory.numel() < frame.size:
            self.memory = torch.empty(frame.size)
        held = self.memory[: frame.size].view(frame.shape)
        np.copyto(held.numpy(), frame)
        return held


_SCRATCH = _Scratch()


@dataclass(frozen=True)
class Image:
    """One instance, ready to learn from; its identifiers never show in a text."""

    pixels: Float[Tensor, "channel height width"]
    """float32 in [0, 1]; 0 is black, also outside the image."""
    SOPInstanceUID: str = field(repr=False)
    StudyInstanceUID: str = field(repr=False)
    AccessionNumber: str = field(repr=False)
    PatientID: str = field(repr=False)


class Instance:
    """A DICOM file whose header has passed, open within `open_instance`; pixels are read when asked for."""

    def __init__(self, file: BufferedReader) -> None:
        try:
            self._dataset = dcmread(file)
        except struct.error:
            raise refuse(Reason.TRUNCATED) from None
        check_header(self._dataset, pixels_follow="PixelData" in self._dataset)
        self.SOPInstanceUID, self.StudyInstanceUID, self.AccessionNumber, self.PatientID = (
            str(self._dataset.get(keyword) or "").strip()
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
        )

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
        frame = _middle_frame(dataset)
        shown = _colour(frame, dataset) if _is_colour(dataset) else _grey(frame, dataset)
        return fit_square(with_channels(shown, channels), aspect=self.aspect, size=size)


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
        return Image(
            instance.pixels(size=size, channels=channels),
            instance.SOPInstanceUID,
            instance.StudyInstanceUID,
            instance.AccessionNumber,
            instance.PatientID,
        )


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
    frames = int(dataset.get("NumberOfFrames") or 1)
    try:
        return pixel_array(dataset, index=frames // 2, view_only=True)
    except ValueError:
        native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
        if native and len(dataset.PixelData) < get_expected_length(dataset):
            raise refuse(Reason.TRUNCATED) from None
        raise


def _is_colour(dataset: Dataset) -> bool:
    return bool(dataset.SamplesPerPixel > 1) or dataset.PhotometricInterpretation == "PALETTE COLOR"


def _colour(frame: Stored, dataset: Dataset) -> Float[Tensor, "3 height width"]:
    """Return an RGB frame, or indices through their palette (PS3.3 C.7.6.3.1.5), scaled to [0, 1]."""
    full = 2 ** int(dataset.BitsStored) - 1
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)[..., :3]
        full = 2 ** (8 * frame.itemsize) - 1
    rgb = _SCRATCH.hold(frame)
    return rgb.div_(full).clamp_(0, 1).permute(2, 0, 1)


def _grey(frame: Stored, dataset: Dataset) -> Float[Tensor, "1 height width"]:
    """Return a stored frame as shown: modality, VOI, polarity; pixel padding (C.7.5.1.1.2) is black."""
    padding = _padding(frame, dataset)
    shown = _of_interest(frame, dataset, padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown.neg_().add_(1)
    if padding is not None:
        shown[torch.from_numpy(padding)] = 0
    return shown[None]


def _padding(frame: Stored, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Return where the scanner measured nothing, or None where the file names no padding value."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    return np.asarray((frame >= min(first, last)) & (frame <= max(first, last)))


def _of_interest(
    frame: Stored, dataset: Dataset, padding: NDArray[np.bool_] | None
) -> Float[Tensor, "height width"]:
    """Return modality values (PS3.3 C.11.1) in [0, 1] by VOI LUT, window, or own range (C.11.2)."""
    slope, intercept = 1.0, 0.0
    little = dataset.original_encoding[1]
    if modality := dataset.get("ModalityLUTSequence"):
        frame, _ = _look_up(frame, modality[0], little)
    else:
        slope, intercept = _rescale(dataset)
    if (voi := dataset.get("VOILUTSequence")) and "LUTData" in voi[0]:
        entries, bits = _look_up(np.rint(frame * slope + intercept).astype(np.int64), voi[0], little)
        return _SCRATCH.hold(entries).div_(2**bits - 1)
    values = _SCRATCH.hold(frame)
    window = _window(dataset)
    if window is None:
        low, high = _range(frame, padding)
        turned = slope < 0
        values.sub_(high if turned else low).mul_(math.copysign(1 / max(high - low, 1e-12), slope))
        return values.clamp_(0, 1)
    low, width, function = window
    if width == 0:
        return (values * slope + intercept > low).to(torch.float32)
    values.sub_((low - intercept) / slope).mul_(slope / width)
    return values.sub_(0.5).mul_(4).sigmoid_() if function == "SIGMOID" else values.clamp_(0, 1)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Return RescaleSlope and RescaleIntercept; 1 and 0 where the file has none."""
    slope, intercept = (_first(dataset.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0 or not math.isfinite(slope + intercept):
        raise refuse(Reason.UNREADABLE, "Export the file again with a RescaleSlope other than 0.")
    return slope, intercept


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """Return the first window's lower edge, width and function; None where the file has none that is valid.

    LINEAR spans c - 0.5 -+ (w - 1) / 2, LINEAR_EXACT and SIGMOID c -+ w / 2 (PS3.3 C.11.2.1.2, C.11.2.1.3).
    """
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not math.isfinite(center + width):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise refuse(Reason.UNREADABLE, "Export the file again with a VOILUTFunction of the Standard.")
    if function == "LINEAR":
        return (center - 0.5 - (width - 1) / 2, width - 1, function) if width >= 1 else None
    return (center - width / 2, width, function) if width > 0 else None


def _first(value: object) -> float | None:
    """Return a decimal string's first value as a number; None where it is absent or empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return float(value)
    values = list(value)  # type: ignore[call-overload]
    return float(values[0]) if values and values[0] not in (None, "") else None


def _range(frame: Stored, padding: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return the lowest and highest stored value that was measured."""
    measured = frame if padding is None else frame[~padding]
    return (float(measured.min()), float(measured.max())) if measured.size else (0.0, 0.0)


def _look_up(values: Stored, item: Dataset, little_endian: bool | None) -> tuple[Stored, int]:
    """Return `values` through an item's LUT, and the bits of its entries (PS3.3 C.11.1.1, C.11.2.1.1).

    Done here, not by pydicom, whose index wraps round where the entries have 8 bits and the values more.
    """
    count, first, bits = item.LUTDescriptor
    LUTData = item.LUTData
    words = "<u2" if little_endian else ">u2"
    entries = np.frombuffer(LUTData, words) if isinstance(LUTData, bytes) else np.asarray(LUTData, np.uint16)
    index = values.astype(np.int64) - first
    return entries[index.clip(0, (count or 2**16) - 1)], int(bits)


def _pixel_aspect(dataset: Dataset) -> float:
    """Return a pixel's height over its width (PS3.3 C.7.6.3.1.7, 10.7.1.1); 1 where not told."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        spacing = dataset.get(keyword)
        if spacing is not None and len(spacing) == 2 and min(spacing) > 0:
            return float(spacing[0]) / float(spacing[1])
    return 1.0
