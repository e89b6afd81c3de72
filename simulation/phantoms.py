"""Writes synthetic hospitals: real DICOM trees of chests that never were, with labels.

Everything follows from the seed: each site has its own generator, so a site's files are the same
bytes whichever other sites are written, in whatever order, on whatever day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from common.errors import ConfigError, DataError
from common.sections import Phantoms
from common.seeds import derive
from simulation.anatomy import draw_body, draw_pose, render
from simulation.findings import FINDINGS
from simulation.hospital import new_hospital, write_csv
from simulation.scanners import Scanner, draw_scanner
from simulation.write_dicom import Frame, Photometric, dataset, uid, write_instance

_FORMAT = 1
"""Raised whenever the same parameters come to mean other files."""
_ADULT_AGES = (21, 90)
_FIRST_DAY = date(2016, 1, 1)
_DAYS = 8 * 365


@dataclass(frozen=True)
class Patient:
    """One patient: what all of their images share."""

    number: int
    finding: str
    header: Dataset
    """The Patient module (PS3.3 C.7.1.1)."""
    born: date
    images: tuple[int, ...]
    """Number of images in each study."""
    antero_posterior: bool


def write_hospitals(
    folder: Path,
    phantoms: Phantoms,
    *,
    seed: int,
    classes: tuple[str, ...] = ("normal", "nodule"),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write hospitals `site-1`, `site-2`, ... below `folder` and return their folders.

    Each is a tree patient/study/series/image with `labels.csv` (SOPInstanceUID, finding). One that
    stands already with the same parameters is kept as it is. `progress` is told sites done and sites
    in all. Raises ConfigError for a class that no phantom can be of, DataError where a hospital's
    folder is something else.
    """
    unknown = [name for name in classes if name not in FINDINGS]
    if unknown:
        raise ConfigError(
            f"task.classes {unknown[0]!r} is nothing a phantom can show; it can show {', '.join(FINDINGS)}. "
            "Choose among these, or name your own hospitals in data.hospitals."
        )
    folders = []
    for site in range(phantoms.sites):
        folders.append(_ensure_site(folder, site, phantoms, seed=seed, classes=classes))
        if progress is not None:
            progress(site + 1, phantoms.sites)
    return folders


def _ensure_site(folder: Path, site: int, phantoms: Phantoms, *, seed: int, classes: tuple[str, ...]) -> Path:
    """Return the folder of site number `site`, written unless it stands already."""
    name = f"site-{site + 1}"
    parameters = json.dumps(
        {
            "format": _FORMAT,
            "site": site,
            "seed": seed,
            "patients": phantoms.patients,
            "matrix": phantoms.matrix,
            "classes": classes,
        },
        indent=1,
    )
    target = folder / name
    stamp = target / ".phantoms.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == parameters:
        return target
    if target.exists():
        raise DataError(
            f"{target}: holds something else than these phantoms. Remove it, or name another folder."
        )
    with new_hospital(folder, name, seed=seed) as hospital:
        labels = list(_write_site(hospital, site, phantoms, seed=seed, classes=classes))
        write_csv(hospital / "labels.csv", ("SOPInstanceUID", "finding"), labels)
        (hospital / stamp.name).write_text(parameters, encoding="utf-8")
    return target


def _write_site(
    hospital: Path, site: int, phantoms: Phantoms, *, seed: int, classes: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Write every image of a site; yield each one's SOPInstanceUID and finding."""
    scanner = draw_scanner(seed, site, phantoms.matrix)
    rng = np.random.default_rng(derive(seed, "phantoms", site))
    equipment = _equipment(scanner)
    findings = _draw_findings(rng, phantoms.patients, classes)
    for number, finding in enumerate(findings, start=1):
        patient = _draw_patient(rng, number, finding, scanner)
        for SOPInstanceUID in _write_patient(hospital, patient, scanner, equipment, rng, origin=(seed, site)):
            yield SOPInstanceUID, finding


def _draw_findings(rng: np.random.Generator, patients: int, classes: tuple[str, ...]) -> list[str]:
    """Return one class per patient: the first is common, the others are rarer, differently at each site."""
    weights = np.r_[1.0, rng.uniform(0.45, 0.8, len(classes) - 1)]
    counts = np.maximum(1, np.rint(patients * weights / weights.sum())).astype(int)
    counts[0] = patients - counts[1:].sum()
    return [str(finding) for finding in rng.permutation(np.repeat(classes, counts))]


def _draw_patient(rng: np.random.Generator, number: int, finding: str, scanner: Scanner) -> Patient:
    """Return a patient with one to three images in one or two studies."""
    images = int(rng.choice((1, 2, 3), p=(0.4, 0.35, 0.25)))
    follow_up = images > 1 and bool(rng.random() < 0.5)
    age = int(rng.integers(*_ADULT_AGES))
    born = _FIRST_DAY - timedelta(days=365 * age + int(rng.integers(365)))
    sex = str(rng.choice(("F", "M")))
    header = dataset(
        {
            "PatientName": f"Phantom^{'Ada' if sex == 'F' else 'Otto'}^{number:03d}",
            "PatientID": f"{rng.integers(10**7, 10**8)}",
            "PatientBirthDate": f"{born:%Y%m%d}",
            "PatientSex": sex,
        }
    )
    return Patient(
        number=number,
        finding=finding,
        header=header,
        born=born,
        images=(images - 1, 1) if follow_up else (images,),
        antero_posterior=bool(rng.random() < scanner.antero_posterior),
    )


def _write_patient(
    hospital: Path,
    patient: Patient,
    scanner: Scanner,
    equipment: Dataset,
    rng: np.random.Generator,
    *,
    origin: tuple[int, int],
) -> Iterator[str]:
    """Write a patient's images; yield each one's SOPInstanceUID."""
    body = draw_body(rng)
    lesion = FINDINGS[patient.finding](rng, body)
    x, y = scanner.points()
    day = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)))
    for study, images in enumerate(patient.images, start=1):
        series = hospital / f"patient-{patient.number:03d}" / f"study-{study}" / "series-1"
        series.mkdir(parents=True)
        header = _study(patient, study, day, rng, origin=(*origin, patient.number, study))
        header.update(patient.header)
        header.update(equipment)
        for image in range(1, images + 1):
            header.SOPInstanceUID = uid("instance", *origin, patient.number, study, image)
            header.InstanceNumber = image
            pose = draw_pose(rng, antero_posterior=patient.antero_posterior)
            stored = scanner.expose(render(body, pose, lesion, x, y, rng), rng)
            photometric: Photometric = "MONOCHROME1" if scanner.maker.inverse else "MONOCHROME2"
            frame = Frame(stored, scanner.maker.bits_stored, photometric)
            write_instance(series / f"image-{image}.dcm", header, frame, scanner.maker.encoding)
            yield str(header.SOPInstanceUID)
        day += timedelta(days=int(rng.integers(1, 200)))


def _study(
    patient: Patient, study: int, day: date, rng: np.random.Generator, *, origin: tuple[int, ...]
) -> Dataset:
    """Return what one study's images share (PS3.3 C.7.2.1, C.7.3.1, and the view of C.8.1.1 or C.8.11.5)."""
    view = codes.cid4010.AnteroPosterior if patient.antero_posterior else codes.cid4010.PosteroAnterior
    started = f"{rng.integers(7, 19):02d}{rng.integers(60):02d}00"
    return dataset(
        {
            "StudyInstanceUID": uid("study", *origin),
            "SeriesInstanceUID": uid("series", *origin),
            "StudyID": str(study),
            "SeriesNumber": 1,
            "AccessionNumber": f"A{rng.integers(10**8, 10**9)}",
            "StudyDate": f"{day:%Y%m%d}",
            "StudyTime": started,
            "AcquisitionDate": f"{day:%Y%m%d}",
            "AcquisitionTime": started,
            "ContentDate": f"{day:%Y%m%d}",
            "ContentTime": started,
            "PatientAge": f"{(day - patient.born).days // 365:03d}Y",
            "ReferringPhysicianName": "",
            "ViewPosition": "AP" if patient.antero_posterior else "PA",
            "ViewCodeSequence": [_code(view)],
        }
    )


def _equipment(scanner: Scanner) -> Dataset:
    """Return what all of a scanner's images share: equipment, anatomy, detector, display (PS3.3 A.2)."""
    maker = scanner.maker
    WindowCenter, WindowWidth = scanner.window
    header = dataset(
        {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": ComputedRadiographyImageStorage,
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "Modality": maker.modality,
            "Manufacturer": maker.name,
            "ManufacturerModelName": f"Phantom {maker.modality}",
            "BodyPartExamined": "CHEST",
            "PatientOrientation": ["L", "F"],
            "ImagerPixelSpacing": [scanner.pixel_spacing] * 2,
            "PixelSpacing": [scanner.pixel_spacing] * 2,
            "RescaleIntercept": 0,
            "RescaleSlope": 1,
            "RescaleType": "US",
            "WindowCenter": WindowCenter,
            "WindowWidth": WindowWidth,
            "BurnedInAnnotation": "NO",
            "LossyImageCompression": "00",
        }
    )
    if maker.modality == "DX":
        header.update(_digital(scanner))
    return header


def _digital(scanner: Scanner) -> Dataset:
    """Return what digital X-ray asks beyond computed radiography (PS3.3 C.8.11.1 to C.8.11.3)."""
    return dataset(
        {
            "SOPClassUID": DigitalXRayImageStorageForPresentation,
            "ImageType": ["ORIGINAL", "PRIMARY", ""],
            "PresentationIntentType": "FOR PRESENTATION",
            "PresentationLUTShape": "INVERSE" if scanner.maker.inverse else "IDENTITY",
            "PixelIntensityRelationship": "LOG",
            # 1: a lower value means less beam behind the patient, thus bone; so it is in MONOCHROME1.
            "PixelIntensityRelationshipSign": 1 if scanner.maker.inverse else -1,
            "ImageLaterality": "U",
            "AnatomicRegionSequence": [_code(codes.cid4009.Chest)],
            "AcquisitionContextSequence": [],
            "DetectorType": "DIRECT",
        }
    )


def _code(concept: Any) -> Dataset:
    """Return a coded concept as a sequence item (PS3.3, table 8.8-1)."""
    return dataset(
        {
            "CodeValue": concept.value,
            "CodingSchemeDesignator": concept.scheme_designator,
            "CodeMeaning": concept.meaning,
        }
    )
