"""Real tables as hospitals: a CSV of numbers becomes one table per site.

A row that cannot be used is left out and told in `skipped.csv` beside the hospitals, by its line
and a reason; it stops nothing. What makes the whole table useless raises DataError.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from client.cells import NOT_MEASURED, comparable, kind_of
from client.labels import SIDES
from common.errors import ConfigError, DataError
from simulation.follow_up import FollowUp
from simulation.hospital import new_hospital, write_csv
from simulation.source import Row, Source, number, read_source

_log = logging.getLogger(__name__)


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
        others = [name for name in source.columns if name and name not in roles]
        numeric = [name for name in others if _is_numeric(source, name, missing)]
        _tell_left_out(source, [name for name in others if name not in numeric], missing)
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
    return None if name is None else f"{name}: {kind_of(row.cells[name]).words}, and no plain number"


def _tell_left_out(source: Source, columns: Sequence[str], missing: Mapping[str, Sequence[str]]) -> None:
    """Tell which columns become no features, and what they hold that is no number."""
    told = []
    for name in columns:
        measured = [row.cells[name] for row in source.rows if _is_measured(row, name, missing)]
        kinds = Counter(kind_of(cell).words for cell in measured if number(cell) is None)
        told += [f"{name} ({kind})" for kind, _ in kinds.most_common(1)]
    if told:
        _log.warning("columns left out, as they do not hold numbers alone: %s.", ", ".join(told))


def _is_numeric(source: Source, name: str, missing: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a column was measured at all, and in numbers only."""
    measured = [row.cells[name] for row in source.rows if _is_measured(row, name, missing)]
    return bool(measured) and all(number(cell) is not None for cell in measured)


def _is_measured(row: Row, name: str, missing: Mapping[str, Sequence[str]]) -> bool:
    cell = row.cells[name]
    return cell.lower() not in NOT_MEASURED and comparable(cell) not in map(comparable, missing.get(name, ()))


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
            spelled.setdefault(comparable(row.cells[name]), row.cells[name])
    if not spelled:
        raise DataError(f"{source.path}: column {name} is measured nowhere. Leave it out.")
    order = sorted(spelled, key=lambda value: (isinstance(value, str), value))
    return [spelled[value] for value in order]
