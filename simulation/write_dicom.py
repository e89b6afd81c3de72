"""Pixels and headers out: one DICOM file (PS3.10) per image, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from rle.utils import encode_pixel_data

Encoding = Literal["explicit", "implicit", "rle", "jpeg-2000", "jpeg"]
Photometric = Literal["MONOCHROME1", "MONOCHROME2", "RGB"]
TRANSFER_SYNTAXES: dict[Encoding, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-2000": JPEG2000Lossless,
    "jpeg": JPEGBaseline8Bit,
}
_JPEG_QUALITY = 92
_J2K_GREY = 2
"""OpenJPEG's number for greyscale."""


@dataclass(frozen=True)
class Frame:
    """One image as the Image Pixel module tells it (PS3.3 C.7.6.3): unsigned, colour by pixel."""

    values: UInt8[np.ndarray, "row column *sample"] | UInt16[np.ndarray, "row column"]
    bits_stored: int
    photometric: Photometric

    def elements(self) -> dict[str, Any]:
        """Return the module's elements but PixelData."""
        rows, columns, *samples = self.values.shape
        bits_allocated = 8 if self.bits_stored <= 8 else 16
        colour = {"PlanarConfiguration": 0} if samples else {}
        return colour | {
            "SamplesPerPixel": samples[0] if samples else 1,
            "PhotometricInterpretation": self.photometric,
            "Rows": rows,
            "Columns": columns,
            "BitsAllocated": bits_allocated,
            "BitsStored": self.bits_stored,
            "HighBit": self.bits_stored - 1,
            "PixelRepresentation": 0,
        }


def uid(*origin: str | int) -> UID:
    """Return the UID of one thing, named by its origin: the same origin gives the same UID (PS3.5 B.2)."""
    # The length goes along, so that ("a", "bc") and ("ab", "c") differ.
    return generate_uid(entropy_srcs=[f"{len(str(part))}:{part}" for part in origin])


def dataset(elements: Mapping[str, Any]) -> Dataset:
    """Return a dataset from keyword and value."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def secondary_capture(PatientID: str, *, origin: tuple[str | int, ...]) -> Dataset:
    """Return a Secondary Capture's header (PS3.3 A.8.1); what nobody knows of patient and study is empty."""
    unknown = (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "Manufacturer",
    )
    return dataset(
        dict.fromkeys(unknown, "")
        | {
            "SOPClassUID": SecondaryCaptureImageStorage,
            "SOPInstanceUID": uid("instance", *origin),
            "StudyInstanceUID": uid("study", *origin),
            "SeriesInstanceUID": uid("series", *origin),
            "PatientID": PatientID,
            "Modality": "OT",
            "ConversionType": "WSD",
            "ImageType": ["DERIVED", "SECONDARY"],
            "SeriesNumber": 1,
            "InstanceNumber": 1,
        }
    )


def write_instance(path: Path, header: Dataset, frame: Frame, encoding: Encoding) -> None:
    """Write `header` and `frame` to `path`; colour must be "explicit" or "implicit".

    The header holds everything but the Image Pixel module; SOPClassUID and SOPInstanceUID are a must.
    """
    instance = dataset(frame.elements())
    instance.update(header)
    values = np.ascontiguousarray(frame.values, dtype="<u1" if frame.bits_stored <= 8 else "<u2")
    if encoding in ("explicit", "implicit"):
        native = values.tobytes()
        # Explicit VR knows bytes (OB) and words (OW); implicit VR has words only (PS3.5, A.1 and A.2).
        VR = "OB" if encoding == "explicit" and frame.bits_stored <= 8 else "OW"
        instance.add_new("PixelData", VR, native + b"\0" * (len(native) % 2))
    else:
        code = _compressed(values, instance, encoding)
        if encoding == "jpeg":
            instance.add_new("LossyImageCompression", "CS", "01")
            instance.add_new("LossyImageCompressionRatio", "DS", f"{values.nbytes / len(code):.2f}")
            instance.add_new("LossyImageCompressionMethod", "CS", "ISO_10918_1")
        instance.add_new("PixelData", "OB", encapsulate([code]))
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = TRANSFER_SYNTAXES[encoding]
    instance.save_as(path, enforce_file_format=True)


def _compressed(values: np.ndarray, instance: Dataset, encoding: Encoding) -> bytes:
    """Return one grey frame's bytes: RLE segments, a JPEG 2000 codestream or a JPEG stream (PS3.5, A.4)."""
    if encoding == "rle":
        return bytes(encode_pixel_data(values.tobytes(), instance, byteorder="<"))
    if encoding == "jpeg-2000":
        return encode_array(values, bits_stored=instance.BitsStored, photometric_interpretation=_J2K_GREY)
    stream = BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
