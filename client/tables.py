"""Hospitals that are a table: `table.csv` with `schema.toml`.

Numeric columns are standardised with this hospital's own adaptation rows (or as measured, for whoever
standardises them with the federation's), categorical ones become indicators, and packed bits (a molecule's
fingerprint) are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import string
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.cells import NOT_MEASURED, comparable, kind_of, number
from client.labels import Cells, Sheet, labels_of, read_sheet
from common.columns import EXPONENT, Statistics, summable
from common.errors import DataError
from common.features import Features
from common.sections import Task

_HEXADECIMAL = frozenset(string.hexdigits)

Code = str | int | float
"""A cell's value as schema.toml writes it."""


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

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a network is given."""
        return (*self.numeric, *self.categorical, *self.bits)

    @property
    def features(self) -> Features:
        """What of it all hospitals of a run must have alike."""
        return Features(
            tuple(self.numeric),
            tuple((name, _comparables(categories)) for name, categories in self.categorical.items()),
            tuple(self.bits.items()),
            tuple((name, _comparables(self.missing[name])) for name in self.columns if name in self.missing),
        )


def _comparables(values: Iterable[Code]) -> tuple[str, ...]:
    return tuple(str(comparable(str(value))) for value in values)


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
                kind, more = kind_of(cell), self._more_without_number(name, row)
                raise DataError(
                    f"{self.sheet.path}, line {self.sheet.lines[row]}: {name} must be a finite number, and "
                    f"holds {kind.words}{more}. {kind.remedy}, or list its code for 'not measured' under "
                    "[missing] in schema.toml."
                )
            values[row] = value
        return values

    def _more_without_number(self, name: str, first: int) -> str:
        """Return how many rows after the first have no number in a column either, in words."""
        more = sum(row > first and number(cell) is None for row, cell in self._measured(name))
        return f"; {more} more lines hold no number either" if more else ""

    def _indicators(self, name: str, categories: list[Code]) -> NDArray[np.float64]:
        """Return `[row, category]`, 1 where the row has that category; all 0 where not measured."""
        place = {comparable(str(category)): index for index, category in enumerate(categories)}
        values = np.zeros((len(self.sheet.rows), len(categories)))
        for row, cell in self._measured(name):
            index = place.get(comparable(cell))
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
        codes = {comparable(str(code)) for code in self.schema.missing.get(name, [])}
        for row, cell in enumerate(self.sheet.column(name, purpose="a feature of schema.toml")):
            if cell.lower() not in NOT_MEASURED and comparable(cell) not in codes:
                yield row, cell


def read_table(folder: Path, task: Task) -> Table:
    """Return the table hospital in `folder`; raises DataError."""
    schema = _read_schema(folder / "schema.toml")
    sheet = read_sheet(folder / "table.csv")
    _refuse_answers(folder / "schema.toml", schema, task)
    labels = labels_of(sheet, task)
    count = len(sheet.rows)
    patients = sheet.column(schema.patient, purpose="the patient") if schema.patient else ("",) * count
    sides = sheet.sides(schema.split) if schema.split else (None,) * count
    return Table(sheet, schema, labels, patients, sides)


def _refuse_answers(path: Path, schema: Schema, task: Task) -> None:
    """Raise DataError where a feature is the label, or says who a patient is or which side it is on."""
    roles = {
        **dict.fromkeys(task.columns, "the label"),
        schema.patient: "the patient",
        schema.split: "the split",
    }
    for name in schema.columns:
        if role := roles.get(name):
            raise DataError(
                f"{path}: {name} is {role} and a feature as well, which would give the answer away. Take it "
                "out of numeric, [categorical] or [bits] there."
            )


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
