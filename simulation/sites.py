"""Real tables as hospitals: a CSV of image files, or of numbers, becomes one folder per site.

A row that cannot be used is left out and told in `skipped.csv` beside the hospitals, by its line
and a reason; it stops nothing. What makes the whole table useless raises DataError.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image

from client.cells import NOT_MEASURED
from client.labels import SIDES
from common.errors import ConfigError, DataError, Refused
from simulation.follow_up import FollowUp
from simulation.hospital import new_hospital, site_key, write_csv
from simulation.pictures import Picture, read_picture
from simulation.source import Row, Source, number, read_source
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
            picture = read_picture(source.path.parent / path)
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
        picture = read_picture(source.path.parent / row.cells[column])
    except Refused as refused:
        raise Refused(f"{column}: {refused.reason}") from None
    mask = picture.frame.values
    if picture.history:
        raise Refused(f"{column}: the mask is a JPEG, whose pixels are not exact; save it as PNG")
    if mask.shape != image.frame.values.shape[:2]:
        raise Refused(f"{column}: the mask must be one grey channel of the image's own size")
    return Image.fromarray(mask)


def import_table(
    table: Path,
    folder: Path,
    *,
    site_column: str,
    label_column: str,
    numeric: Sequence[str],
    categorical: Sequence[str],
    missing: Mapping[str, Sequence[str]],
    patient_column: str | None = None,
    split_column: str | None = None,
    seed: int,
    drop: Sequence[str] = (),
    follow_up: FollowUp | None = None,
    joined: tuple[Path, str] | None = None,
) -> list[Path]:
    """Write `table.csv` and `schema.toml` per site from a CSV of features; return the sites' folders.

    Without `numeric`, every remaining column that holds numbers only is numeric. A categorical
    column's categories are those of all sites together, so that each site's features mean the same.
    `missing` lists, by column, codes that stand for "not measured". With a `follow_up` the label column is
    made of it; `joined` is another CSV and the column that it is matched by. Raises DataError for a CSV,
    column or site name that cannot be used, and where no row can; ConfigError for a column of two roles.
    """
    source = read_source(table)
    if joined:
        source.join(read_source(joined[0]), joined[1])
    if follow_up:
        follow_up.label(source, label_column)
        drop = [*drop, follow_up.event, follow_up.time]
    roles = [
        site_column,
        label_column,
        *filter(None, (patient_column, split_column)),
        *numeric,
        *categorical,
        *drop,
    ]
    source.require(*roles, *missing)
    _refuse_two_roles(roles)
    source.sift(lambda row: _fault_of_row(row, site_column, label_column, patient_column, split_column))
    if not numeric:
        numeric = [
            name for name in source.columns if name not in roles and _is_numeric(source, name, missing)
        ]
    source.sift(lambda row: _fault_of_numbers(row, numeric, missing))
    source.report(folder)
    if not numeric and not categorical:
        raise DataError(f"{table}: has no numeric column left. Name columns as numeric or categorical.")
    schema = _schema(source, label_column, patient_column, split_column, numeric, categorical, missing)
    kept = [*filter(None, (patient_column, split_column)), label_column, *numeric, *categorical]
    written = []
    for site, rows in source.per_site(site_column, folder).items():
        with new_hospital(folder, site, seed=seed) as hospital:
            write_csv(hospital / "table.csv", kept, ([row.cells[name] for name in kept] for row in rows))
            (hospital / "schema.toml").write_text(schema, encoding="utf-8")
        written.append(folder / site)
    return written


def _refuse_two_roles(roles: list[str]) -> None:
    for name in roles:
        if roles.count(name) > 1:
            raise ConfigError(
                f"column {name}: has two roles (site, label, patient, split, feature, drop). Keep one."
            )


def _fault_of_row(row: Row, site: str, label: str, patient: str | None, split: str | None) -> str | None:
    """Return what a row lacks besides its features, or None."""
    if not row.cells[site]:
        return f"{site}: no site"
    if row.cells[label].lower() in NOT_MEASURED:
        return f"{label}: no label"
    if patient and not row.cells[patient]:
        return f"{patient}: no patient"
    if split and row.cells[split].lower() not in SIDES:
        return f"{split}: must be one of {', '.join(SIDES)}"
    return None


def _fault_of_numbers(row: Row, numeric: Sequence[str], missing: Mapping[str, Sequence[str]]) -> str | None:
    """Return the first measured cell of a numeric column that is no number, or None."""
    faults = (
        name for name in numeric if _is_measured(row, name, missing) and number(row.cells[name]) is None
    )
    name = next(faults, None)
    return None if name is None else f"{name}: not a number"


def _is_numeric(source: Source, name: str, missing: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a column was measured at all, and in numbers only."""
    measured = [row.cells[name] for row in source.rows if _is_measured(row, name, missing)]
    return bool(measured) and all(number(cell) is not None for cell in measured)


def _is_measured(row: Row, name: str, missing: Mapping[str, Sequence[str]]) -> bool:
    cell = row.cells[name]
    return cell.lower() not in NOT_MEASURED and _same(cell) not in map(_same, missing.get(name, ()))


def _schema(
    source: Source,
    label: str,
    patient: str | None,
    split: str | None,
    numeric: Sequence[str],
    categorical: Sequence[str],
    missing: Mapping[str, Sequence[str]],
) -> str:
    """Return schema.toml's text, the same for every site."""
    schema: dict[str, Any] = {"label": label}
    schema |= {"patient": patient} if patient else {}
    schema |= {"split": split} if split else {}
    schema["numeric"] = list(numeric)
    schema["categorical"] = {name: _categories(source, name, missing) for name in categorical}
    schema["missing"] = {
        name: [code if (value := number(code)) is None else value for code in codes]
        for name, codes in missing.items()
    }
    return tomli_w.dumps(schema)


def _categories(source: Source, name: str, missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Return every site's values of a column, each once ("1" and "1.0" are one): numbers first, in order."""
    spelled: dict[float | str, str] = {}
    for row in source.rows:
        if _is_measured(row, name, missing):
            spelled.setdefault(_same(row.cells[name]), row.cells[name])
    if not spelled:
        raise DataError(f"{source.path}: column {name} is measured nowhere. Leave it out.")
    order = sorted(spelled, key=lambda value: (isinstance(value, str), value))
    return [spelled[value] for value in order]


def _same(cell: str) -> float | str:
    """Return what makes two cells the same category: a number's value, or the text."""
    value = number(cell)
    return cell if value is None else float(value)
