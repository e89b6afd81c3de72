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
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.misc import is_dicom
from pydicom.uid import DeflatedExplicitVRLittleEndian
from torch import Tensor

from client.cache import Cache, Known
from client.dicom import Instance, open_instance
from client.preflight import File, Reason, refuse
from client.resample import fit_square
from client.split import SiteKeys, content_of, keyed_hash
from common.errors import Refused

FORMATS = ("PNG", "TIFF", "BMP")
"""Without loss: a JPEG's ringing would be foreground."""
GREY = frozenset({"1", "L", "P", "I", "I;16"})
"""Pillow's modes whose pixels are one whole number."""
HALF = 0.5
"""From which on a pixel of a fractional segment is the segment's."""
MOST_SEGMENTS = 64
ANOTHERS = "Name a DICOM Segmentation that refers to the image by its SOPInstanceUID."


@dataclass
class Masks:
    """A pass over the masks that labels.csv names; each is decoded once, and again when it has changed."""

    folder: Path
    cache: Cache
    keys: SiteKeys
    classes: tuple[str, ...]
    size: int
    one_by_one: bool
    """Whether labels.csv names single images; only then is an image file one image's mask."""
    _names: dict[str, str] = field(default_factory=dict)
    _known: dict[str, Known] = field(default_factory=dict)

    def take(self, image: str, file: File, relative: str) -> str:
        """Read the mask at `relative` of an image, which goes by the name `image`; raises Refused.

        Returns the keyed hash of the mask's bytes.
        """
        path = inside(self.folder, relative)
        if path is None:
            raise refuse(Reason.NO_MASK)
        if not self.one_by_one and not is_dicom(path):
            raise refuse(
                Reason.UNFITTING_MASK, "Name single images in labels.csv, by SOPInstanceUID or path."
            )
        found = path.stat()
        told = f"mask {relative} {self.classes} {file.relative} {file.size} {file.mtime_ns}"
        name = keyed_hash(self.keys.file, told)
        known = self.cache.recall(name, found.st_size, found.st_mtime_ns)
        if known is None:
            with open_instance(file.path) as instance:
                mask = read_mask(path, instance, self.classes, size=self.size)
            content = content_of(self.keys, path)
            known = Known(
                found.st_size, found.st_mtime_ns, content=content, row=self.cache.append(mask[None])
            )
            self.cache.note(name, known)
        self._names[image], self._known[name] = name, known
        return known.content

    def arrange(self, images: Sequence[str]) -> Float[Tensor, "row height width"]:
        """Return the masks of `images`, and let the cache remember this pass."""
        return self.cache.arrange(self._known, [self._names[image] for image in images])[:, 0]


def inside(folder: Path, relative: str) -> Path | None:
    """Return the file at a path from a hospital's folder; None where there is none, or it lies elsewhere.

    A path with backslashes is tried with slashes as well.
    """
    try:
        for spelling in (relative, relative.replace("\\", "/")):
            path = (folder / spelling).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
    except (OSError, RuntimeError, ValueError):  # too long a name, links in a ring, a NUL
        pass
    return None


def read_mask(
    path: Path, image: Instance, classes: tuple[str, ...], *, size: int
) -> Float[Tensor, "height width"]:
    """Return an image's mask, resampled as the image is; a pixel is of the class that covers most of it.

    Raises Refused where the file is no mask, or not one of this image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = (
            _segmentation(path, image, classes) if is_dicom(path) else _picture(path, image, len(classes))
        )
    if values.shape != image.shape or values.min() < 0 or values.max() >= len(classes):
        raise refuse(Reason.UNFITTING_MASK)
    covered = torch.from_numpy(np.eye(len(classes), dtype=np.float32)[values]).permute(2, 0, 1)
    return fit_square(covered, aspect=image.aspect, size=size).argmax(0).float()


def _picture(path: Path, image: Instance, classes: int) -> NDArray[np.int64]:
    try:
        with Picture.open(path, formats=FORMATS) as picture:
            if picture.mode not in GREY:
                raise refuse(Reason.UNFITTING_MASK, "Save the mask as one grey channel.")
            # Before a pixel is decoded: a small file may hold a huge image.
            if picture.size != image.shape[::-1]:
                raise refuse(Reason.UNFITTING_MASK)
            values = np.asarray(picture).astype(np.int64)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
        raise refuse(Reason.UNFITTING_MASK, "Save the mask as PNG, TIFF or BMP.") from None
    return (values > 0).astype(np.int64) if classes == 2 and values.min(initial=0) >= 0 else values


def _segmentation(path: Path, image: Instance, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the classes of an image's pixels from a DICOM Segmentation; overlaps go to the later segment."""
    import highdicom

    logger = logging.getLogger("highdicom")
    logger.setLevel(logging.CRITICAL)  # it quotes what a file holds
    try:
        _check_size(path, image)
        segments = highdicom.seg.segread(path)
        if image.header.SOPInstanceUID not in {instance for *_, instance in segments.get_source_image_uids()}:
            raise refuse(Reason.UNFITTING_MASK, ANOTHERS)
        numbers = list(segments.segment_numbers)
        places = _places([segments.get_segment_description(number) for number in numbers], classes)
        frames = segments.get_pixels_by_source_instance(
            [image.header.SOPInstanceUID],
            segment_numbers=numbers,
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )[0]
    except Refused:
        raise
    except Exception:  # whatever a parser does with a file that somebody else wrote
        raise refuse(Reason.UNFITTING_MASK, ANOTHERS) from None
    values = np.zeros(frames.shape[:2], np.int64)
    for layer, place in enumerate(places):
        values[frames[..., layer] >= HALF] = place
    return values


def _check_size(path: Path, image: Instance) -> None:
    """Raise Refused for a segmentation of another size than the image's, before its pixels are in memory."""
    if read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        raise refuse(Reason.UNFITTING_MASK, "Save the segmentation without deflating it.")
    header = dcmread(path, stop_before_pixels=True)
    if (header.Rows, header.Columns) != image.shape or len(header.SegmentSequence) > MOST_SEGMENTS:
        raise refuse(Reason.UNFITTING_MASK)


def _places(segments: Sequence[Any], classes: tuple[str, ...]) -> list[int]:
    """Return the classes of segments, by number where no name tells; raises Refused where one has none."""
    named = {name.casefold(): place for place, name in enumerate(classes)}
    by_name = [named.get(str(one.segment_label).casefold()) for one in segments]
    known = [place for place in by_name if place is not None]
    places = known or [int(one.segment_number) for one in segments]
    if len(places) < len(segments) or max(places) >= len(classes):
        raise refuse(Reason.UNFITTING_MASK, "Name every segment by its class (SegmentLabel), or none.")
    return places
