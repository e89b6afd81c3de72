"""Comma-separated tables: the labels beside DICOM files, and hospitals that are a table altogether.

`labels.csv` gives each file its label. `table.csv` with `schema.toml` is a hospital of numbers: numeric
columns standardised with this hospital's own adaptation rows (or as measured, for whoever standardises
them with the federation's), categorical ones as indicators, and packed bits (a molecule's fingerprint) as
they are.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import string
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.columns import EXPONENT, Statistics, summable
from common.errors import DataError
from common.sections import Task

KEYS = ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "path")
"""What labels.csv may name a file by; `path` is relative to the hospital's folder."""

ONE_BY_ONE = frozenset({"SOPInstanceUID", "path"})
"""Those that name a single image."""

SIDES = {"adaptation": True, "train": True, "test": False}
"""Values of a split column, and whether they mean the adaptation side."""

NOT_MEASURED = frozenset({"", "?", "nan"})

_HEXADECIMAL = frozenset(string.hexdigits)

Code = str | int | float
"""A cell's value as schema.toml writes it."""
Cells = tuple[str, ...]
"""A case's cells in the label's columns (`Task.columns`)."""


class Schema(BaseModel):
    """What schema.toml says of a table's columns."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    label: str = ""
    patient: str = ""
    split: str = ""
    numeric: list[str] = Field(default_factory=list)
    categorical: dict[str, Annotated[list[str | int | float], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    bits: dict[str, Annotated[int, Field(ge=8, le=65536, multiple_of=8)]] = Field(default_factory=dict)
    """Per column of hexadecimal digits how many bits it holds; the first is the first digit's highest."""
    missing: dict[str, list[str | int | float]] = Field(default_factory=dict)


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


@dataclass(frozen=True)
class Table:
    """A table hospital as text and numbers, one entry per row; features are read once the split is known."""

    sheet: Sheet
    schema: Schema
    labels: tuple[Cells, ...]
    patients: tuple[str, ...]
    sides: tuple[bool | None, ...]

    def features(self, adaptation: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return float32 `[row, feature]`: numeric columns, each categorical's indicators, then bits.

        Numeric columns are standardised with the mean and the standard deviation (n - 1) of the measured
        `adaptation` rows; missing, and columns without variance, become 0, which is the mean.
        """
        numeric = Statistics.of(self._numeric[adaptation]).standardise(self._numeric)
        return np.column_stack([numeric, self._others]).astype(np.float32)

    def measured(self) -> NDArray[np.float64]:
        """Return the numeric columns as they are `[row, column]`, NaN where not measured.

        DataError: a value cannot be summed exactly over hospitals (`common.columns`).
        """
        for row, column in np.argwhere(~summable(self._numeric)):
            raise DataError(
                f"{self.sheet.path}, line {self.sheet.lines[row]}: {self.schema.numeric[column]} must be 0, "
                f"or 2^-{EXPONENT} to 2^{EXPONENT} in size, where the federation standardises it. "
                'Mend it, choose another unit, or ask the coordinator for data.standardise = "site".'
            )
        return self._numeric

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """Per row a digest of its features as the schema reads them, before anything is standardised."""
        read = json.dumps([self.schema.numeric, self.schema.categorical, self.schema.bits])
        start = hashlib.sha256(read.encode())

        def digest(numeric: NDArray[np.float64], others: NDArray[np.float32]) -> str:
            content = start.copy()
            content.update(numeric.tobytes() + others.tobytes())
            return content.hexdigest()

        return tuple(digest(*both) for both in zip(self._numeric, self._others, strict=True))

    @cached_property
    def _others(self) -> NDArray[np.float32]:
        """What is not numeric `[row, feature]`: each categorical's indicators, then bits."""
        indicators = [self._indicators(name, values) for name, values in self.schema.categorical.items()]
        packed = [self._bits(name, count) for name, count in self.schema.bits.items()]
        none = np.empty((len(self.sheet.rows), 0))
        return np.column_stack([none, *indicators, *packed]).astype(np.float32)

    @cached_property
    def _numeric(self) -> NDArray[np.float64]:
        """The numeric columns `[row, column]`, NaN where not measured."""
        columns = [self._numbers(name) for name in self.schema.numeric]
        return np.column_stack([np.empty((len(self.sheet.rows), 0)), *columns])

    def _numbers(self, name: str) -> NDArray[np.float64]:
        """Return a numeric column, NaN where not measured."""
        values = np.full(len(self.sheet.rows), np.nan)
        for row, cell in self._measured(name):
            value = number(cell)
            if value is None:
                raise DataError(
                    f"{self.sheet.path}, line {self.sheet.lines[row]}: {name} must be a finite number. "
                    f"Mend it, or list its code for 'not measured' under [missing] in schema.toml."
                )
            values[row] = value
        return values

    def _indicators(self, name: str, categories: list[Code]) -> NDArray[np.float64]:
        """Return `[row, category]`, 1 where the row has that category; all 0 where not measured."""
        place = {_comparable(str(category)): index for index, category in enumerate(categories)}
        values = np.zeros((len(self.sheet.rows), len(categories)))
        for row, cell in self._measured(name):
            index = place.get(_comparable(cell))
            if index is None:
                raise DataError(
                    f"{self.sheet.path}, line {self.sheet.lines[row]}: {name} is no category of schema.toml. "
                    "Add the category there at every hospital, or mend the row."
                )
            values[row, index] = 1
        return values

    def _bits(self, name: str, count: int) -> NDArray[np.uint8]:
        """Return `[row, bit]`, each bit 0 or 1; all 0 where not measured."""
        values = np.zeros((len(self.sheet.rows), count // 8), np.uint8)
        for row, cell in self._measured(name):
            if len(cell) != count // 4 or not set(cell) <= _HEXADECIMAL:
                raise DataError(
                    f"{self.sheet.path}, line {self.sheet.lines[row]}: {name} must be {count // 4} "
                    f"hexadecimal digits, as schema.toml says {count} bits. Mend the row, or the count there."
                )
            values[row] = np.frombuffer(bytes.fromhex(cell), np.uint8)
        return np.unpackbits(values, axis=1)

    def _measured(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield row and cell wherever the column was measured."""
        codes = {_comparable(str(code)) for code in self.schema.missing.get(name, [])}
        for row, cell in enumerate(self.sheet.column(name, purpose="a feature of schema.toml")):
            if cell.lower() not in NOT_MEASURED and _comparable(cell) not in codes:
                yield row, cell


def read_labels(path: Path, task: Task) -> Labels:
    """Return what labels.csv says of the run's label; raises DataError."""
    sheet = read_sheet(path)
    key = sheet.columns[0]
    if key not in KEYS:
        raise DataError(f"{path}: the first column must be one of {', '.join(KEYS)}; name it so.")
    labels = _labels(sheet, task)
    sides = sheet.sides("split") if "split" in sheet.columns else (None,) * len(labels)
    rows: dict[str, tuple[Cells, bool | None]] = {}
    for number, row, label, side in zip(sheet.lines, sheet.rows, labels, sides, strict=True):
        if row[0] and rows.setdefault(row[0].removeprefix("./"), (label, side)) != (label, side):
            raise DataError(
                f"{path}, line {number}: contradicts an earlier line with the same {key}. Keep one."
            )
    return Labels(key, rows)


def read_table(folder: Path, task: Task) -> Table:
    """Return the table hospital in `folder`; raises DataError."""
    schema = _read_schema(folder / "schema.toml")
    sheet = read_sheet(folder / "table.csv")
    labels = _labels(sheet, task)
    count = len(sheet.rows)
    patients = sheet.column(schema.patient, purpose="the patient") if schema.patient else ("",) * count
    sides = sheet.sides(schema.split) if schema.split else (None,) * count
    return Table(sheet, schema, labels, patients, sides)


def offers(folder: Path, labels: Path | None, columns: tuple[str, ...]) -> bool:
    """Return whether the hospital in `folder` has the label's columns; raises DataError."""
    return set(columns) <= set(read_sheet(label_file(folder, labels)).columns)


def class_values(folder: Path, labels: Path | None, label: str) -> tuple[str, ...]:
    """Return the distinct values that a hospital's label has, in order; raises DataError."""
    found = read_sheet(label_file(folder, labels)).column(label, purpose="the label")
    return tuple(sorted({value for value in found if value.lower() not in NOT_MEASURED}))


def label_file(folder: Path, labels: Path | None = None) -> Path:
    """Return the file with a hospital's labels: the one named, its labels.csv, or its table."""
    own = folder / "labels.csv"
    return labels or (own if own.is_file() else folder / "table.csv")


def read_sheet(path: Path) -> Sheet:
    """Return a comma-separated UTF-8 table with a header line, its cells stripped; raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            read = [(reader.line_num, tuple(cell.strip() for cell in row)) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as comma-separated UTF-8 text. Save it as such.") from error
    if len(read) < 2:
        raise DataError(f"{path}: needs a header line and at least one row.")
    (_, header), *numbered = read
    if len(set(header)) != len(header):
        raise DataError(f"{path}: names a column twice; every column once.")
    for number, row in numbered:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number}: has {len(row)} cells where the header has {len(header)}."
            )
    lines, rows = zip(*numbered, strict=True)
    return Sheet(path, header, rows, lines)


def _labels(sheet: Sheet, task: Task) -> tuple[Cells, ...]:
    """Return each row's cells in the label's columns; raises DataError where no row has any."""
    columns = [sheet.column(name, purpose="the run's label") for name in task.columns]
    if all(cell.lower() in NOT_MEASURED for cells in columns for cell in cells):
        named = " and ".join(task.columns)
        raise DataError(f"{sheet.path}: column {named} has no label at all. Fill it in.")
    return tuple(zip(*columns, strict=True))


def class_of(label: str, classes: tuple[str, ...]) -> int | None:
    """Return which class a label names, numbers compared as numbers ("1.0" is "1"); None where none."""
    places = {_comparable(name): index for index, name in enumerate(classes)}
    return places.get(_comparable(label))


def _read_schema(path: Path) -> Schema:
    try:
        schema = Schema.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise DataError(f"{path}: {key}: {fault['msg']}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: cannot be read as TOML: {error}.") from error
    if not (schema.numeric or schema.categorical or schema.bits):
        raise DataError(f"{path}: names no feature. List columns under numeric, [categorical] or [bits].")
    return schema


def number(text: str) -> float | None:
    """Return a cell as a finite number, or None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _comparable(text: str) -> float | str:
    """Return a number where the text is one, so that 1, 1.0 and "1.0" are the same category."""
    value = number(text)
    return text.strip() if value is None else value
