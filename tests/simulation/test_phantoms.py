"""Phantom hospitals: what a seed decides, what the Standard asks, what the reader makes of them."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from client.dataset import open_hospital
from client.dicom import read_image
from common.errors import ConfigError, DataError
from common.sections import Data, Phantoms, Task
from simulation.anatomy import draw_body, draw_pose, render, texture
from simulation.findings import FINDINGS, Healthy
from simulation.hospital import site_key
from simulation.phantoms import write_hospitals
from simulation.scanners import MAKERS, blur, draw_scanner

SMALL = Phantoms(sites=6, patients=8, matrix=64)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small hospitals, written once."""
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), SMALL, seed=5)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def _headers(folder: Path) -> list[Dataset]:
    return [dcmread(path, stop_before_pixels=True) for path in sorted(folder.rglob("*.dcm"))]


def _labels(folder: Path) -> dict[str, str]:
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        return {row["SOPInstanceUID"]: row["finding"] for row in csv.DictReader(file)}


def test_the_seed_decides_every_byte_of_a_site_whatever_else_is_written(
    hospitals: list[Path], tmp_path: Path
) -> None:
    """Two of the sites written alone are the same files, secret included, as among six."""
    again = write_hospitals(tmp_path, SMALL.model_copy(update={"sites": 2}), seed=5)
    assert [_digests(folder) for folder in again] == [_digests(folder) for folder in hospitals[:2]]


def test_another_seed_gives_other_patients_and_another_secret(hospitals: list[Path], tmp_path: Path) -> None:
    """No image file is shared between two seeds."""
    (other, _) = write_hospitals(tmp_path, SMALL.model_copy(update={"sites": 2}), seed=6)
    assert not set(_digests(other).values()) & set(_digests(hospitals[0]).values())


def test_a_hospital_that_stands_is_kept_and_any_other_is_refused(tmp_path: Path) -> None:
    """The same parameters leave the files alone; other parameters never overwrite them."""
    few = Phantoms(sites=2, patients=4, matrix=32)
    first, _ = write_hospitals(tmp_path, few, seed=0)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    told: list[tuple[int, int]] = []
    write_hospitals(tmp_path, few, seed=0, progress=lambda done, total: told.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(DataError, match="Remove it, or name another folder"):
        write_hospitals(tmp_path, few, seed=1)


def test_a_half_written_hospital_is_started_anew(tmp_path: Path) -> None:
    """What a killed process left behind neither counts as a hospital nor stays."""
    left = tmp_path / ".site-1.partial" / "patient-001"
    left.mkdir(parents=True)
    write_hospitals(tmp_path, Phantoms(sites=2, patients=4, matrix=32), seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site-1", "site-2"]


def test_the_smallest_matrix_can_be_written_at_every_site(tmp_path: Path) -> None:
    """No encoding fails at 32 pixels, the least that a configuration takes, with all three classes."""
    least = Phantoms(sites=6, patients=4, matrix=32)
    for folder in write_hospitals(tmp_path, least, seed=0, classes=tuple(FINDINGS)):
        assert set(_labels(folder).values()) == set(FINDINGS)


def test_a_class_that_no_phantom_shows_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """The error names the class and the choice."""
    with pytest.raises(ConfigError, match=r"'fracture'.*normal, nodule, effusion"):
        write_hospitals(tmp_path, SMALL, seed=0, classes=("normal", "fracture"))


def test_six_sites_have_six_makers_and_every_property_spans_its_range() -> None:
    """A Latin hypercube: sorted, a property's six values lie in six different sixths, under any seed."""
    for seed in range(5):
        sites = [draw_scanner(seed, site, 128) for site in range(6)]
        assert {site.maker for site in sites} == set(MAKERS)
        sixths = sorted(int(6 * (np.log10(site.photons) - 2.9) / (4.3 - 2.9)) for site in sites)
        assert sixths == list(range(6))


def test_identifiers_are_unique_and_labels_name_every_image(hospitals: list[Path]) -> None:
    """UIDs are valid (PS3.5, section 9), never shared, and exactly those of labels.csv."""
    headers = [_headers(folder) for folder in hospitals]
    every = [header.SOPInstanceUID for site in headers for header in site]
    assert len(set(every)) == len(every)
    assert all(UID(one).is_valid for one in every)
    for folder, site in zip(hospitals, headers, strict=True):
        assert set(_labels(folder)) == {header.SOPInstanceUID for header in site}


def test_a_patient_has_one_finding_one_identity_and_one_to_three_images(hospitals: list[Path]) -> None:
    """Findings belong to patients, so that a split by patient is a split of cases."""
    for folder in hospitals:
        labels = _labels(folder)
        patients: dict[str, list[Dataset]] = {}
        for header in _headers(folder):
            patients.setdefault(header.PatientID, []).append(header)
        assert len(patients) == SMALL.patients
        for images in patients.values():
            assert 1 <= len(images) <= 3
            assert len({header.StudyInstanceUID for header in images}) <= 2
            assert len({labels[header.SOPInstanceUID] for header in images}) == 1
            assert len({(str(header.PatientName), header.PatientBirthDate) for header in images}) == 1


def test_headers_agree_with_their_pixels_and_their_sop_class(hospitals: list[Path]) -> None:
    """Type 1 elements of CR and DX are there (PS3.3 A.2, A.26), and the age fits the dates."""
    for folder in hospitals:
        for header in _headers(folder):
            assert header.BitsAllocated == (8 if header.BitsStored == 8 else 16)
            assert header.HighBit == header.BitsStored - 1
            low, high = (
                header.WindowCenter - header.WindowWidth / 2,
                header.WindowCenter + header.WindowWidth / 2,
            )
            assert 0 <= low < high <= 2**header.BitsStored
            birthday = int(header.StudyDate) - int(header.PatientBirthDate)
            assert abs(birthday // 10_000 - int(header.PatientAge[:3])) <= 1
            if header.Modality == "DX":
                assert header.PresentationIntentType == "FOR PRESENTATION"
                assert header.ViewCodeSequence[0].CodingSchemeDesignator == "SCT"
                assert header.AnatomicRegionSequence[0].CodeMeaning == "Chest"
            lossy = header.file_meta.TransferSyntaxUID.name.startswith("JPEG Baseline")
            assert header.LossyImageCompression == ("01" if lossy else "00")


def test_transfer_syntaxes_and_photometric_interpretations_differ_between_sites(
    hospitals: list[Path],
) -> None:
    """The six makers write five encodings and both polarities."""
    first = [_headers(folder)[0] for folder in hospitals]
    assert len({header.file_meta.TransferSyntaxUID for header in first}) == 5
    assert {header.PhotometricInterpretation for header in first} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({float(header.PixelSpacing[0]) for header in first}) == 6


def test_every_image_reads_as_a_chest_whatever_its_encoding(hospitals: list[Path]) -> None:
    """Lungs darker than the abdomen and the spine, after window and polarity, at every site."""
    for folder in hospitals:
        for path in folder.rglob("*.dcm"):
            shown = read_image(path, size=32, channels=1).pixels[0]
            lungs = (shown[10:15, 8:12].mean() + shown[10:15, 21:24].mean()) / 2
            assert shown[26:30, 10:22].mean() > lungs + 0.1
            assert 0 <= shown.min() <= shown.max() <= 1


def test_the_hospital_reader_takes_every_image(hospitals: list[Path], tmp_path: Path) -> None:
    """Nothing of a phantom hospital is refused, and every class is there."""
    task = Task(classes=("normal", "nodule"))
    census = open_hospital(hospitals[0], Data(image_size=16), task, state=tmp_path).census
    assert not any(census.refused.values())
    assert census.patients == SMALL.patients
    assert all(census.per_class.values())


def test_the_key_is_the_owners_alone_and_derived_from_seed_and_site(hospitals: list[Path]) -> None:
    """Mode 0600, 32 bytes, another one for every site."""
    key = hospitals[0] / ".zamenis" / "site.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_bytes() == site_key(5, "site-1") != site_key(5, "site-2")
    assert len(key.read_bytes()) == 32


@pytest.mark.parametrize("finding", ["nodule", "effusion"])
def test_a_finding_takes_air_and_adds_nothing_elsewhere(finding: str) -> None:
    """Water grows where the finding is, by no more than the lung's own air, and nowhere shrinks."""
    x, y = draw_scanner(0, 0, 64).points()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        body, pose = draw_body(rng), draw_pose(rng, antero_posterior=False)
        lesion = FINDINGS[finding](rng, body)
        normal = render(body, pose, Healthy(), x, y, np.random.default_rng(0))
        ill = render(body, pose, lesion, x, y, np.random.default_rng(0))
        assert normal.dtype == np.float32
        assert (ill - normal).min() > -1e-3
        assert 10 < (ill - normal).max() < 119


def test_texture_has_unit_variance_and_a_power_law() -> None:
    """Amplitude falls as frequency^-1.5, so doubling the frequency divides the power by 2^3 = 8."""
    rng = np.random.default_rng(0)
    power = np.mean([np.abs(np.fft.rfft2(texture(rng, 64, 64))) ** 2 for _ in range(200)], axis=0)
    assert np.mean([texture(rng, 64, 48).var() for _ in range(200)]) == pytest.approx(1, rel=0.05)
    assert power[0, 4] / power[0, 8] == pytest.approx(8, rel=0.35)
    assert power[0, 8] / power[0, 16] == pytest.approx(8, rel=0.35)


def test_blur_keeps_a_constant_and_spreads_a_point_by_its_deviation() -> None:
    """A Gaussian's variance along one axis is its squared deviation; cut at 2.5 deviations, a little less."""
    assert np.allclose(blur(np.full((9, 7), 3, dtype=np.float32), 1.5), 3)
    point = np.zeros((41, 41), dtype=np.float32)
    point[20, 20] = 1
    spread = blur(point, 3.0)
    offsets = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, rel=1e-5)
    assert (spread.sum(axis=0) * offsets**2).sum() == pytest.approx(9, rel=0.15)
