"""What a file's header says of its place in a hospital's data: whose it is, in which series, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydicom import Dataset, uid

from client.elements import Elements

FOR_PROCESSING = frozenset(
    {
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForProcessing,
    }
)
FOR_PRESENTATION = frozenset(
    {
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalIntraOralXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForPresentation,
    }
)


Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, repr=False)
class Header:
    """What is read of one image beside its pixels; empty where the file does not say. It has no text form."""

    SOPInstanceUID: str
    StudyInstanceUID: str
    SeriesInstanceUID: str
    AccessionNumber: str
    PatientID: str
    Modality: str
    SeriesDescription: str
    SliceThickness: Finite | None
    """mm."""
    place: Finite
    """Where in its series it lies: mm along the normal (PS3.3 C.7.6.2.1.1), else its InstanceNumber."""
    exposures: tuple[str, ...]
    """Names of the exposure that it shows, where others may show it too; equal names tell the same one."""
    for_processing: bool
    """Whether it is an exposure's raw image, which a machine made another one of for people to look at."""

    @classmethod
    def of(cls, dataset: Elements) -> Header:
        """Return what a data set says."""
        position = _numbers(dataset, "ImagePositionPatient", 3)
        axes = _numbers(dataset, "ImageOrientationPatient", 6)
        number, thickness = _numbers(dataset, "InstanceNumber", 1), _numbers(dataset, "SliceThickness", 1)
        return cls(
            SOPInstanceUID=_text(dataset, "SOPInstanceUID"),
            StudyInstanceUID=_text(dataset, "StudyInstanceUID"),
            SeriesInstanceUID=_text(dataset, "SeriesInstanceUID"),
            AccessionNumber=_text(dataset, "AccessionNumber"),
            PatientID=_text(dataset, "PatientID"),
            Modality=_text(dataset, "Modality"),
            SeriesDescription=_text(dataset, "SeriesDescription"),
            SliceThickness=thickness[0] if thickness else None,
            place=_along(axes, position) if axes and position else number[0] if number else 0.0,
            exposures=tuple(_exposures(dataset)),
            for_processing=dataset.get("SOPClassUID") in FOR_PROCESSING,
        )

    def to_json(self) -> bytes:
        """Return the text that `from_json` reads."""
        return _HEADER.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Header:
        """Return what `to_json` wrote. ValueError: it is something else, which its text may quote."""
        return _HEADER.validate_json(text)


_HEADER = TypeAdapter(Header)


def _text(dataset: Elements | Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _numbers(dataset: Elements, keyword: str, count: int) -> list[float]:
    """Return an element's finite numbers; none where it holds another count of them, or something else."""
    with suppress(ValueError, TypeError, OverflowError):
        value = dataset.get(keyword)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        numbers = [_finite(one) for one in values]
        return numbers if len(numbers) == count else []
    return []


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


def _along(axes: Sequence[float], position: Sequence[float]) -> float:
    """Return how far a position lies along the normal of the plane that two axes span."""
    (a, b, c), (d, e, f), (x, y, z) = axes[:3], axes[3:], position
    return (b * f - c * e) * x + (c * d - a * f) * y + (a * e - b * d) * z


def _exposures(dataset: Elements) -> Iterator[str]:
    """Yield names of the exposure that an X-ray image for processing or presentation shows.

    The image for presentation refers to the one that it was made of (PS3.3 C.7.6.1.1.4), or both name the
    irradiation event, or else they share study, side, view and time.
    """
    raw = dataset.get("SOPClassUID") in FOR_PROCESSING
    if not raw and dataset.get("SOPClassUID") not in FOR_PRESENTATION:
        return
    if raw:
        yield f"image {_text(dataset, 'SOPInstanceUID')}"
    else:
        yield from (
            f"image {_text(one, 'ReferencedSOPInstanceUID')}"
            for one in _items(dataset, "SourceImageSequence")
        )
    if event := _text(dataset, "IrradiationEventUID"):
        yield f"event {event}"
    elif study := _text(dataset, "StudyInstanceUID"):
        side = _text(dataset, "ImageLaterality") or _text(dataset, "Laterality")
        views = [_text(one, "CodeValue") for one in _items(dataset, "ViewCodeSequence")]
        seen = [_text(dataset, keyword) for keyword in ("ViewPosition", "AcquisitionDate", "AcquisitionTime")]
        yield " ".join(["view", study, side, *views, *seen])


def _items(dataset: Elements, keyword: str) -> list[Dataset]:
    """Return a sequence's items; none where it is something else."""
    items = dataset.get(keyword)
    return [one for one in items if isinstance(one, Dataset)] if isinstance(items, Sequence) else []
