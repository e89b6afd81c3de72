"""Labels: the columns of labels.csv or of a table that say what is to be predicted, and about what.

`labels.csv` gives each file its label; a table's label is one of its columns (`client.tables`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from client.cells import NOT_MEASURED, as_path, comparable
from common.errors import DataError
from common.sections import Task
from common.sheets import read_lines

KEYS = ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "path")
"""What labels.csv may name a file by; `path` is relative to the hospital's folder."""

ONE_BY_ONE = frozenset({"SOPInstanceUID", "path"})
"""Those that name a single image."""

SIDES = {"adaptation": True, "train": True, "test": False}
"""Values of a split column, and whether they mean the adaptation side."""

Cells = tuple[str, ...]
"""A case's cells in the label's columns (`Task.columns`)."""


@dataclass(frozen=True)
class Sheet:
    """A table as text: its column names, and its rows in the file's order."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    """Per row its line in the file, for messages."""

    def column(self, name: str, *, purpose: str) -> tuple[str, ...]:
        """Return one column's cells; raises DataError, hinting at the nearest name, where it is absent."""
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}?" if near else f"Its columns are: {', '.join(self.columns)}."
            raise DataError(f"{self.path}: has no column {name}, needed as {purpose}. {hint}")
        index = self.columns.index(name)
        return tuple(row[index] for row in self.rows)

    def sides(self, name: str) -> tuple[bool | None, ...]:
        """Return per row of a split column whether it says adaptation; None where it says nothing."""
        cells = [cell.lower() for cell in self.column(name, purpose="the split")]
        for number, cell in zip(self.lines, cells, strict=True):
            if cell and cell not in SIDES:
                raise DataError(f"{self.path}, line {number}: {name} must be adaptation, test or empty.")
        return tuple(SIDES.get(cell) for cell in cells)


@dataclass(frozen=True)
class Labels:
    """labels.csv: what it names files by, and per key the label's cells and, if given, the side."""

    key: str
    rows: dict[str, tuple[Cells, bool | None]]


def read_labels(path: Path, task: Task) -> Labels:
    """Return what labels.csv says of the run's label; raises DataError."""
    sheet = read_sheet(path)
    key = sheet.columns[0]
    if key not in KEYS:
        raise DataError(f"{path}: the first column must be one of {', '.join(KEYS)}; name it so.")
    labels = labels_of(sheet, task)
    sides = sheet.sides("split") if "split" in sheet.columns else (None,) * len(labels)
    rows: dict[str, tuple[Cells, bool | None]] = {}
    for number, row, label, side in zip(sheet.lines, sheet.rows, labels, sides, strict=True):
        name = as_path(row[0]) if key == "path" else row[0]
        if name and rows.setdefault(name, (label, side)) != (label, side):
            raise DataError(
                f"{path}, line {number}: contradicts an earlier line with the same {key}. Keep one."
            )
    return Labels(key, rows)


def offers(folder: Path, labels: Path | None, columns: tuple[str, ...]) -> bool:
    """Return whether the hospital in `folder` has the label's columns; raises DataError."""
    return set(columns) <= set(read_sheet(label_file(folder, labels)).columns)


def class_values(folder: Path, labels: Path | None, label: str) -> tuple[str, ...]:
    """Return the distinct values that a hospital's label has, in order; raises DataError."""
    found = read_sheet(label_file(folder, labels)).column(label, purpose="the label")
    cells = sorted({cell for cell in found if cell.lower() not in NOT_MEASURED}, reverse=True)
    return tuple(sorted({comparable(cell): cell for cell in cells}.values()))


def label_file(folder: Path, labels: Path | None = None) -> Path:
    """Return the file with a hospital's labels: the one named, its labels.csv, or its table.

    DataError: the folder is no hospital's.
    """
    own = folder / "labels.csv"
    if labels or own.is_file():
        return labels or own
    if (folder / "schema.toml").is_file():
        return folder / "table.csv"
    raise DataError(f"{folder}: has neither labels.csv (images) nor schema.toml (a table); see docs/data.md.")


def read_sheet(path: Path) -> Sheet:
    """Return a comma-separated UTF-8 table with a header line, its cells stripped; raises DataError."""
    read = read_lines(path)
    if len(read) < 2:
        raise DataError(f"{path}: needs a header line and at least one row.")
    (_, header), *numbered = read
    for name in header:
        if name and header.count(name) > 1:
            raise DataError(f"{path}: names column {name} twice; every column once.")
    for number, row in numbered:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number}: has {len(row)} cells where the header has {len(header)}. Cells "
                "with a comma in them, such as decimal commas, need quotation marks."
            )
    lines, rows = zip(*numbered, strict=True)
    return Sheet(path, header, rows, lines)


def labels_of(sheet: Sheet, task: Task) -> tuple[Cells, ...]:
    """Return each row's cells in the label's columns; raises DataError where no row has any."""
    columns = [sheet.column(name, purpose="the run's label") for name in task.columns]
    if all(cell.lower() in NOT_MEASURED for cells in columns for cell in cells):
        named = " and ".join(task.columns)
        raise DataError(f"{sheet.path}: column {named} has no label at all. Fill it in.")
    return tuple(zip(*columns, strict=True))
