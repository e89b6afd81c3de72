"""Real images as hospitals: a CSV of image files becomes one DICOM tree per site.

A row that cannot be used is left out and told in `skipped.csv` beside the hospitals, by its line
and a reason; it stops nothing. What makes the whole table useless raises DataError.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from common.errors import Refused
from simulation.hospital import new_hospital, site_key, write_csv
from simulation.pictures import Picture, read_picture
from simulation.source import Row, Source, read_source
from simulation.write_dicom import dataset, secondary_capture, write_instance


@dataclass(frozen=True)
class _Columns:
    """Which columns of an image table say what."""

    path: str
    site: str
    labels: tuple[str, ...]
    masks: tuple[str, ...]
    patient: str | None

    def fault(self, row: Row) -> str | None:
        """Return what a row lacks, or None."""
        if not row.cells[self.site]:
            return f"{self.site}: no site"
        if not row.cells[self.path]:
            return f"{self.path}: no file"
        if not any(row.cells[label] for label in (*self.labels, *self.masks)):
            return "no label"
        if self.patient and not row.cells[self.patient]:
            # Standing for a patient of its own, it could share one with the other side of the split.
            return f"{self.patient}: no patient"
        return None


def import_images(
    table: Path,
    folder: Path,
    *,
    path_column: str,
    site_column: str,
    label_columns: Sequence[str],
    mask_columns: Sequence[str] = (),
    patient_column: str | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write one DICOM tree per site from a CSV of PNG, JPEG, TIFF or BMP files; return the sites' folders.

    Paths are relative to the CSV's folder. Each image becomes a Secondary Capture instance, grey
    with 8 or 16 bits or RGB, in a study of its own; PatientID is a keyed hash of the patient column,
    or one per file without such a column. `labels.csv` names files by SOPInstanceUID and carries the
    label columns; a mask column names a mask's file in the source and its copy's path in the hospital.
    `progress` is told rows done and rows in all.
    Raises DataError for a CSV, column or site name that cannot be used, and where no row can.
    """
    source = read_source(table)
    columns = _Columns(path_column, site_column, tuple(label_columns), tuple(mask_columns), patient_column)
    source.require(path_column, site_column, *label_columns, *mask_columns, patient_column)
    source.sift(columns.fault)
    sites, total, done = source.per_site(site_column, folder), len(source.rows), 0
    written = []
    for site, rows in sites.items():
        labels = []
        try:
            with new_hospital(folder, site, seed=seed) as hospital:
                for label in _write_images(hospital, rows, columns, source, site=site, seed=seed):
                    labels += label
                    done += 1
                    if progress is not None:
                        progress(done, total)
                if not labels:
                    raise Refused("no usable image")
                header = ("SOPInstanceUID", *label_columns, *mask_columns)
                write_csv(hospital / "labels.csv", header, labels)
        except Refused:
            continue
        written.append(folder / site)
    source.report(folder)
    return written


def _write_images(
    hospital: Path, rows: list[Row], columns: _Columns, source: Source, *, site: str, seed: int
) -> Iterator[list[list[str]]]:
    """Write a site's images; yield per row its line of labels.csv, or none where it is left out."""
    key, patients, seen = site_key(seed, site), dict[str, int](), set[str]()
    for row in rows:
        path = row.cells[columns.path]
        patient = row.cells[columns.patient or columns.path]
        try:
            if path in seen:
                raise Refused("the file is listed before, for the same site")
            seen.add(path)
            picture = read_picture(source.beside(path))
            masks = [
                _mask(source, row, column, picture) if row.cells[column] else None for column in columns.masks
            ]
        except Refused as refused:
            source.skipped[row.line] = refused.reason
            yield []
            continue
        number = patients.setdefault(patient, len(patients) + 1)
        PatientID = hmac.digest(key, f"patient\x1f{patient}".encode(), "sha256")[:8].hex().upper()
        header = secondary_capture(PatientID, origin=(seed, site, path))
        header.update(dataset(picture.history))
        target = hospital / f"patient-{number:04d}" / f"image-{row.line}.dcm"
        target.parent.mkdir(exist_ok=True)
        write_instance(target, header, picture.frame, "explicit")
        cells = [row.cells[label] for label in columns.labels]
        for place, mask in enumerate(masks):
            beside = target.with_name(f"mask{place}-{row.line}.png")
            if mask is not None:
                mask.save(beside)
            cells.append("" if mask is None else beside.relative_to(hospital).as_posix())
        yield [[str(header.SOPInstanceUID), *cells]]


def _mask(source: Source, row: Row, column: str, image: Picture) -> Image.Image:
    """Return an image's mask, freed of whatever else its file holds; raises Refused where it does not fit."""
    try:
        picture = read_picture(source.beside(row.cells[column]))
    except Refused as refused:
        raise Refused(f"{column}: {refused.reason}") from None
    mask = picture.frame.values
    if picture.history:
        raise Refused(f"{column}: the mask is a JPEG, whose pixels are not exact; save it as PNG")
    if mask.shape != image.frame.values.shape[:2]:
        raise Refused(f"{column}: the mask must be one grey channel of the image's own size")
    return Image.fromarray(mask)
