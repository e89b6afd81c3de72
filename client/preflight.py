"""Which files of a hospital's folder can be used, and why the others cannot: nothing is skipped silently.

Each file is accepted, or refused for exactly one reason of `REASONS`; the run goes on. What concerns
one file's header is judged by `check_header`, before any pixel is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom import Dataset, uid

from client.elements import Elements
from common.errors import Refused
from common.files import PRIVATE, write_bytes
from common.sheets import to_csv


class Reason(StrEnum):
    """Why a file or row is left out, in the order in which it is checked."""

    NOT_DICOM = "not DICOM"
    UNSUPPORTED_SOP_CLASS = "unsupported SOP class"
    NO_PIXELS = "no pixels"
    LOCALIZER = "localizer"
    SCREEN_SAVE = "screen save"
    REFORMATTED = "reformatted"
    BURNED_IN = "burned-in text"
    OTHER_SERIES = "another series"
    DUPLICATE = "duplicate"
    MISSING_LABEL = "missing label"
    UNKNOWN_CLASS = "unknown class"
    NOT_A_NUMBER = "label is no number"
    NOT_YES_OR_NO = "label is neither 0 nor 1"
    FOR_PROCESSING = "for processing"
    OTHER_IMAGE = "another image of its series"
    NO_MASK = "no mask"
    UNFITTING_MASK = "mask does not fit"
    DECODER_MISSING = "decoder missing"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"


REASONS = tuple(Reason)

REMEDIES = {
    Reason.NOT_DICOM: "Remove the file, or export it with its file meta information (PS3.10, section 7).",
    Reason.UNSUPPORTED_SOP_CLASS: "Nothing to do: reports, segmentations and plans are no images.",
    Reason.NO_PIXELS: "Export the instance again with its pixel data.",
    Reason.LOCALIZER: "Nothing to do: scouts, from which a scan is planned, are no images of it.",
    Reason.SCREEN_SAVE: "Nothing to do: dose sheets and captured screens are no images of the patient.",
    Reason.REFORMATTED: "Nothing to do: the images that it was computed from count.",
    Reason.BURNED_IN: "Blank out the text, which may name the patient, and set BurnedInAnnotation to NO.",
    Reason.OTHER_SERIES: "Nothing to do: images.toml chooses other series.",
    Reason.DUPLICATE: "Nothing to do: another file holds the same instance; remove one to tidy up.",
    Reason.MISSING_LABEL: "Add a row for it to labels.csv, or fill in its label.",
    Reason.UNKNOWN_CLASS: "Write the label as one of the run's classes, or leave it out.",
    Reason.NOT_A_NUMBER: "Write the label as a number, or leave it empty.",
    Reason.NOT_YES_OR_NO: "Write 1 for a finding, 0 for none, and leave the cell empty where unknown.",
    Reason.FOR_PROCESSING: "Nothing to do: the same exposure's image for presentation counts.",
    Reason.OTHER_IMAGE: "Nothing to do: images.toml takes the image in the middle of each series.",
    Reason.NO_MASK: "Name its mask by the path from the hospital's folder, and put the file there.",
    Reason.UNFITTING_MASK: "Export the mask with the image's own rows and columns and the task's values.",
    Reason.DECODER_MISSING: "Decompress the file, or install the GPL-3 decoders: "
    'pip install "zamenis[gpl-decoders]".',
    Reason.TRUNCATED: "Export or copy the file again: it ends before its pixel data does.",
    Reason.UNREADABLE: "Export the file again; its elements or pixel data contradict the Standard.",
}
"""What a hospital can do about each reason."""

SUPPORTED_SOP_CLASSES = frozenset(
    {
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForPresentation,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.CTImageStorage,
        uid.MRImageStorage,
        uid.UltrasoundImageStorage,
        uid.UltrasoundMultiFrameImageStorage,
        uid.UID("1.2.840.10008.5.1.4.1.1.3"),  # retired: ultrasound of several frames
        uid.UID("1.2.840.10008.5.1.4.1.1.6"),  # retired: ultrasound
        uid.RTImageStorage,
        uid.SecondaryCaptureImageStorage,
        uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
        uid.XRayAngiographicImageStorage,
        uid.XRayRadiofluoroscopicImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.OphthalmicPhotography8BitImageStorage,
        uid.OphthalmicPhotography16BitImageStorage,
        uid.VLEndoscopicImageStorage,
        uid.VLMicroscopicImageStorage,
        uid.VLPhotographicImageStorage,
    }
)
"""Image storage classes whose pixels the Image Pixel and VOI LUT modules fully describe (PS3.4, annex B.5).

Enhanced multi-frame classes are left out: their rescale and window live in functional groups per frame.
"""


IMAGE_TYPES = {
    "LOCALIZER": Reason.LOCALIZER,
    "SCREEN SAVE": Reason.SCREEN_SAVE,
    **dict.fromkeys(
        ("REFORMATTED", "MPR", "CURVED MPR", "PROJECTION IMAGE", "MAXIMUM", "MIP", "MINIP", "VOLUME_RENDER"),
        Reason.REFORMATTED,
    ),
}
"""Values of ImageType of what stands beside a study's images (PS3.3 C.7.6.1.1.2, C.8.2.1.1.1)."""


DESCRIBING = ("labels.csv", "images.toml")
"""Files of a folder that say what its images are."""


@dataclass(frozen=True)
class File:
    """One file of a hospital: its path from the folder (posix), and what tells that it has changed."""

    relative: str
    path: str
    size: int
    """Bytes; -1 where the file cannot even be looked at."""
    mtime_ns: int


@dataclass(frozen=True)
class Quarantined:
    """One line of quarantine.csv."""

    file: str
    reason: str
    remedy: str


def refuse(reason: Reason, remedy: str = "") -> Refused:
    """Return the refusal for `reason`, with its usual remedy unless a better one is given."""
    return Refused(reason, remedy or REMEDIES[reason])


def find_files(folder: Path, state: Path) -> list[File]:
    """Return the files below `folder`, sorted by path, without what describes it, dot files and `state`."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and os.path.join(parent, name) != str(state)]
        found += [_file(folder, os.path.join(parent, name)) for name in names if name[0] != "."]
    return sorted((file for file in found if file.relative not in DESCRIBING), key=lambda file: file.relative)


def check_header(header: Elements | Dataset, *, pixels_follow: bool) -> None:
    """Raise Refused unless `header` describes an image of a supported class whose pixels follow.

    The SOP class comes from the SOP Common module (PS3.3 C.12.1) or, where that is absent as in a
    DICOMDIR, from the file meta information (PS3.10, section 7.1).
    """
    SOPClassUID = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if SOPClassUID not in SUPPORTED_SOP_CLASSES:
        raise refuse(Reason.UNSUPPORTED_SOP_CLASS)
    if not pixels_follow or not header.get("Rows") or not header.get("Columns"):
        raise refuse(Reason.NO_PIXELS)
    told = header.get("ImageType") or ()
    for value in (told,) if isinstance(told, str) else told:
        if reason := IMAGE_TYPES.get(str(value).strip().upper()):
            raise refuse(reason)
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise refuse(Reason.BURNED_IN)
    if not header.get("SOPInstanceUID"):
        raise refuse(Reason.UNREADABLE, "Export the file again with its SOPInstanceUID.")


def quarantine_of(state: Path) -> Path:
    """Return the file that tells what was left out of a folder, and why."""
    return state / "quarantine.csv"


def write_quarantine(state: Path, refused: Iterable[Quarantined]) -> None:
    """Replace `state`/quarantine.csv (columns file, reason, remedy) in one step; it stays at the hospital."""
    rows = [("file", "reason", "remedy"), *((line.file, line.reason, line.remedy) for line in refused)]
    content, path = to_csv(rows).encode("utf-8", "surrogateescape"), quarantine_of(state)
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content, mode=PRIVATE)


def _file(folder: Path, path: str) -> File:
    """Return one file; in plain strings, since opening a cached hospital mostly does this."""
    relative = path[len(str(folder)) + 1 :].replace(os.sep, "/")
    try:
        seen = os.stat(path)
    except OSError:
        return File(relative, path, -1, -1)
    return File(relative, path, seen.st_size, seen.st_mtime_ns)
