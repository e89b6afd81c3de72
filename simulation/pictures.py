"""Ordinary image files as DICOM frames: PNG, JPEG, TIFF and BMP, grey with 8 or 16 bits, or RGB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from common.errors import Refused
from simulation.write_dicom import Frame

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MOST_PIXELS = 2**16 - 1
"""Rows and Columns are 16-bit numbers (PS3.3 C.7.6.3)."""


@dataclass(frozen=True)
class Picture:
    """One image, and what its file tells of losses before (PS3.3 C.7.6.1.1.5)."""

    frame: Frame
    history: Mapping[str, Any]


def read_picture(path: Path) -> Picture:
    """Return the image in the file at `path`, upright; raises Refused, whatever is wrong with it."""
    try:
        size = path.stat().st_size
        with Image.open(path, formats=_FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise Refused("the file holds several images")
            kind = image.format
            frame = _frame(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise Refused("there is no such file") from None
    except Image.DecompressionBombError:
        raise Refused("the image is too large") from None
    except (OSError, ValueError, SyntaxError):
        raise Refused(f"the file is no readable {', '.join(_FORMATS)} image") from None
    history = _jpeg_history(frame.values.nbytes / size) if kind == "JPEG" else {}
    return Picture(frame, history)


def _frame(image: Image.Image) -> Frame:
    """Return grey pixels at their own depth, anything else as RGB, or as grey where all colours are equal."""
    if max(image.size) > _MOST_PIXELS:
        raise Refused("the image is too large")
    if image.mode in ("1", "L", "LA"):
        return Frame(np.asarray(image.convert("L")), 8, "MONOCHROME2")
    if image.mode.startswith("I"):
        return _deep(np.asarray(image))
    if image.mode == "F":
        raise Refused("its pixels are fractions; save whole numbers of 8 or 16 bits")
    rgb = np.asarray(image.convert("RGB"))
    if (rgb == rgb[..., :1]).all():
        return Frame(rgb[..., 0], 8, "MONOCHROME2")
    return Frame(rgb, 8, "RGB")


def _deep(values: np.ndarray) -> Frame:
    """Return pixels of more than 8 bits as 16 bits unsigned."""
    if values.min() < 0 or values.max() >= 2**16:
        raise Refused("its pixels do not fit 16 bits unsigned")
    return Frame(values.astype(np.uint16), 16, "MONOCHROME2")


def _jpeg_history(ratio: float) -> dict[str, Any]:
    return {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": f"{ratio:.2f}",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
