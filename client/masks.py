"""The masks beside a hospital's images: a DICOM Segmentation, or an image file of the same rows and columns.

A mask's pixels are classes by their place in `task.classes`. In an image file of two classes, whatever is
not 0 is the second. In a DICOM Segmentation (PS3.3 A.51) a segment is the class of its SegmentLabel or, where
labels tell nothing, of its SegmentNumber; its frames are those that refer to the image's SOPInstanceUID.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import UnidentifiedImageError
from pydicom.misc import is_dicom
from torch import Tensor

from client.cache import Cache, Known
from client.dicom import Instance, open_instance
from client.preflight import File, Reason, refuse
from client.resample import fit_square
from client.split import SiteKeys, keyed_hash
from common.errors import Refused

GREY = frozenset({"1", "L", "P", "I", "I;16"})
"""Pillow's modes whose pixels are one whole number."""
ANOTHERS = "Name a DICOM Segmentation that refers to the image by its SOPInstanceUID."


@dataclass
class Masks:
    """A pass over the masks that labels.csv names; each is decoded once, and again when it has changed."""

    folder: Path
    cache: Cache
    keys: SiteKeys
    classes: tuple[str, ...]
    size: int
    _names: dict[str, str] = field(default_factory=dict)
    _known: dict[str, Known] = field(default_factory=dict)

    def take(self, image: str, file: File, relative: str) -> None:
        """Read the mask at `relative` of an image, which goes by the name `image`; raises Refused."""
        path = inside(self.folder, relative)
        if path is None:
            raise refuse(Reason.NO_MASK)
        found = path.stat()
        told = f"mask {relative} {file.relative} {file.size} {file.mtime_ns}"
        name = keyed_hash(self.keys.file, told)
        known = self.cache.recall(name, found.st_size, found.st_mtime_ns)
        if known is None:
            with open_instance(file.path) as instance:
                mask = read_mask(path, instance, self.classes, size=self.size)
            known = Known(found.st_size, found.st_mtime_ns, row=self.cache.append(mask[None]))
        self._names[image], self._known[name] = name, known

    def arrange(self, images: Sequence[str]) -> Float[Tensor, "row height width"]:
        """Return the masks of `images`, and let the cache remember this pass."""
        return self.cache.arrange(self._known, [self._names[image] for image in images])[:, 0]


def inside(folder: Path, relative: str) -> Path | None:
    """Return the file at a path from a hospital's folder; None where there is none, or it lies elsewhere."""
    path = (folder / relative).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def read_mask(
    path: Path, image: Instance, classes: tuple[str, ...], *, size: int
) -> Float[Tensor, "height width"]:
    """Return an image's mask, resampled as the image is; a pixel is of the class that covers most of it.

    Raises Refused where the file is no mask, or not one of this image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = _segmentation(path, image, classes) if is_dicom(path) else _picture(path, len(classes))
    if values.shape != image.shape or values.max(initial=0) >= len(classes):
        raise refuse(Reason.UNFITTING_MASK)
    covered = torch.from_numpy(np.eye(len(classes), dtype=np.float32)[values]).permute(2, 0, 1)
    return fit_square(covered, aspect=image.aspect, size=size).argmax(0).float()


def _picture(path: Path, classes: int) -> NDArray[np.int64]:
    try:
        with Picture.open(path) as picture:
            if picture.mode not in GREY:
                raise refuse(Reason.UNFITTING_MASK, "Save the mask as one grey channel.")
            values = np.asarray(picture).astype(np.int64)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
        raise refuse(Reason.UNFITTING_MASK, "Save the mask as PNG, TIFF or BMP.") from None
    return (values != 0).astype(np.int64) if classes == 2 else values


def _segmentation(path: Path, image: Instance, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the classes of an image's pixels from a DICOM Segmentation; overlaps go to the later segment."""
    import highdicom

    logger = logging.getLogger("highdicom")
    logger.setLevel(logging.CRITICAL)  # it quotes what a file holds
    try:
        segments = highdicom.seg.segread(path)
        if image.SOPInstanceUID not in {instance for *_, instance in segments.get_source_image_uids()}:
            raise refuse(Reason.UNFITTING_MASK, ANOTHERS)
        numbers = list(segments.segment_numbers)
        places = {number: _place(segments.get_segment_description(number), classes) for number in numbers}
        frames = segments.get_pixels_by_source_instance(
            [image.SOPInstanceUID],
            segment_numbers=numbers,
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )[0]
    except Refused:
        raise
    except Exception:  # whatever a parser does with a file that somebody else wrote
        raise refuse(Reason.UNFITTING_MASK, ANOTHERS) from None
    values = np.zeros(frames.shape[:2], np.int64)
    for layer, number in enumerate(numbers):
        values[frames[..., layer] > 0] = places[number]
    return values


def _place(segment: Any, classes: tuple[str, ...]) -> int:
    """Return the class that a segment stands for; raises Refused where it stands for none."""
    named = {name.casefold(): place for place, name in enumerate(classes)}
    place = named.get(str(segment.segment_label).casefold(), int(segment.segment_number))
    if place >= len(classes):
        raise refuse(Reason.UNFITTING_MASK)
    return place
