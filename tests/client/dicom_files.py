"""Small DICOM files for tests, written by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset


def dataset(pixels: NDArray[Any], **elements: Any) -> Dataset:
    """Return an uncompressed CT instance of `pixels` [row, column(, 3)]; `elements` override."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image.SOPClassUID = uid.CTImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID = uid.generate_uid(), uid.generate_uid()
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    image.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        image.PlanarConfiguration = 0
    bits = 8 * pixels.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    image["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    return image


def write(path: Path, pixels: NDArray[Any], **elements: Any) -> Dataset:
    """Write such an instance and return it."""
    image = dataset(pixels, **elements)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return image


def write_hospital(folder: Path, patients: int = 12, *, images: int = 2, size: int = 12) -> list[str]:
    """Write a hospital labelled by path, classes alternating by patient; return the PatientIDs."""
    chance = np.random.default_rng(0)
    rows = ["path,finding"]
    for patient in range(patients):
        for image in range(images):
            relative = f"series{patient % 3}/p{patient}i{image}.dcm"
            pixels = chance.integers(0, 4096, (size, size)).astype(np.uint16)
            write(folder / relative, pixels, PatientID=f"Secret^{patient}")
            rows.append(f"{relative},{'nodule' if patient % 2 else 'normal'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return [f"Secret^{patient}" for patient in range(patients)]
