"""From one DICOM file to one tensor: what a viewer would show, as float32 in [0, 1] on a square.

The file is opened and its header checked, the middle frame decoded (`client.frames`), shown
(`client.rendering`), and resampled to the size that a network takes.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path

from jaxtyping import Float
from pydicom import uid
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from torch import Tensor

from client.elements import PREAMBLE, Elements
from client.frames import ONE_SAMPLE, middle_frame
from client.header import Header
from client.preflight import Reason, check_header, refuse
from client.rendering import render
from client.resample import fit_square, with_channels
from common.errors import Refused


@dataclass(frozen=True)
class Image:
    """One instance, ready to learn from; its identifiers never show in a text."""

    pixels: Float[Tensor, "channel height width"]
    """float32 in [0, 1]; 0 is black, also outside the image."""
    header: Header


class Instance:
    """A DICOM file whose header has passed, open within `open_instance`; pixels are read when asked for."""

    def __init__(self, file: BufferedReader) -> None:
        self._elements = _read(file)
        check_header(
            self._elements, pixels_follow=bool(self._elements.left or self._elements.get("PixelData"))
        )
        self.header = Header.of(self._elements)

    @property
    def shape(self) -> tuple[int, int]:
        """The image's rows and columns."""
        return int(self._elements.Rows), int(self._elements.Columns)

    @property
    def aspect(self) -> float:
        """A pixel's height over its width."""
        return _pixel_aspect(self._elements)

    def pixels(self, *, size: int, channels: int) -> Float[Tensor, "channel height width"]:
        """Return the image as float32 in [0, 1] on `size` x `size`; of several frames the middle one."""
        shown = with_channels(render(middle_frame(self._elements), self._elements), channels)
        fitted = fit_square(shown, aspect=self.aspect, size=size)
        if not fitted.isfinite().all():
            raise refuse(Reason.UNREADABLE, "Export the file again: its rescale and window give no numbers.")
        return fitted

    def ask(self, *, size: int, channels: int) -> Callable[[], Float[Tensor, "channel height width"]]:
        """Return what reads the pixels, as `client.image_child.Opened.ask` does."""
        return partial(self.pixels, size=size, channels=channels)


@contextmanager
def open_instance(path: Path | str) -> Iterator[Instance]:
    """Open the file at `path` and read its header; raises Refused, whatever is wrong with it."""
    if not os.path.isfile(path):  # a pipe, which would keep its reader waiting, a socket, a broken link
        raise refuse(Reason.UNREADABLE, "Remove it: it is no file that could be read.")
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


def _read(file: BufferedReader) -> Elements:
    """Return the file's elements, with or without the preamble and the file meta information before it.

    Scanners' own exports often lack these: a data set then begins with its first group, 0002 or 0008.
    """
    start = file.read(PREAMBLE + 4)
    file.seek(0)
    bare = start[PREAMBLE:] != b"DICM" and start[:2] in (b"\x02\x00", b"\x08\x00")
    try:
        elements = Elements(file, bare=bare)
    except struct.error:
        raise refuse(Reason.TRUNCATED) from None
    meta = elements.file_meta
    if "TransferSyntaxUID" not in meta:
        explicit = uid.ExplicitVRLittleEndian if elements.little else uid.ExplicitVRBigEndian
        meta.complete("TransferSyntaxUID", uid.ImplicitVRLittleEndian if elements.implicit else explicit)
    if "SOPInstanceUID" not in elements and "MediaStorageSOPInstanceUID" in meta:
        elements.complete("SOPInstanceUID", meta.MediaStorageSOPInstanceUID)
    if "SamplesPerPixel" not in elements and str(elements.get("PhotometricInterpretation")) in ONE_SAMPLE:
        elements.complete("SamplesPerPixel", 1)
    return elements


def _pixel_aspect(elements: Elements) -> float:
    """Return a pixel's height over its width (PS3.3 C.7.6.3.1.7, 10.7.1.1); 1 where not told."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        spacing = elements.get(keyword)
        if isinstance(spacing, Sequence) and len(spacing) == 2 and min(spacing) > 0:
            return float(spacing[0]) / float(spacing[1])
    return 1.0
