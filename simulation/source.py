"""The CSV that hospitals are made from: its usable rows, and why the others are not."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client import cells
from common.errors import DataError
from common.sheets import read_lines
from simulation.hospital import check_sites, write_csv

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One data row: its line in the file, where the header is line 1, and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass
class Source:
    """A table as it is sifted: rows that can be used, and per line left out the reason."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    skipped: dict[int, str] = field(default_factory=dict)

    def require(self, *names: str | None) -> None:
        """Raise DataError unless every name given is a column."""
        for name in names:
            if name is not None and name not in self.columns:
                near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.4)
                hint = f"Did you mean {near[0]}?" if near else f"Its columns are: {', '.join(self.columns)}."
                raise DataError(f"{self.path}: has no column {name}. {hint}")

    def sift(self, fault: Callable[[Row], str | None]) -> None:
        """Leave out every row in which `fault` finds one."""
        kept = []
        for row in self.rows:
            reason = fault(row)
            if reason is None:
                kept.append(row)
            else:
                self.skipped[row.line] = reason
        self.rows = kept

    def add(self, name: str, value: Callable[[Row], str]) -> None:
        """Add a column, whose cells `value` makes."""
        self.columns = (*self.columns, name)
        self.rows = [Row(row.line, {**row.cells, name: value(row)}) for row in self.rows]

    def join(self, other: Source, on: str) -> None:
        """Add `other`'s columns, matched by the column `on` of both; leave out rows without a match.

        Raises DataError where a column is in both, and where `other` has a value of `on` twice.
        """
        self.require(on)
        other.require(on)
        for name in sorted(set(self.columns) & set(other.columns) - {on}):
            raise DataError(f"{other.path}: column {name} is in {self.path} as well. Rename or remove one.")
        matches: dict[str, Row] = {}
        for row in other.rows:
            if row.cells[on] and matches.setdefault(row.cells[on], row) is not row:
                raise DataError(f"{other.path}, line {row.line}: repeats an earlier line's {on}. Keep one.")
        near = {cells.without_zeros(key) for key in matches}

        def fault(row: Row) -> str | None:
            if row.cells[on] in matches:
                return None
            if cells.without_zeros(row.cells[on]) in near:
                return f"{on}: in {other.path.name} with other leading zeros, case or blanks alone"
            return f"{on}: not in {other.path.name}"

        self.sift(fault)
        self.columns += tuple(name for name in other.columns if name != on)
        self.rows = [Row(row.line, {**row.cells, **matches[row.cells[on]].cells}) for row in self.rows]

    def beside(self, relative: str) -> Path:
        """Return the file that a cell names by its path from the table's folder, backslashes or not."""
        path = self.path.parent / relative
        return path if path.exists() else self.path.parent / relative.replace("\\", "/")

    def per_site(self, column: str, folder: Path) -> dict[str, list[Row]]:
        """Return each site's rows, sites by name; raises DataError unless `folder` can take every one."""
        sites: dict[str, list[Row]] = {}
        for row in self.rows:
            sites.setdefault(row.cells[column], []).append(row)
        check_sites(folder, sites, source=self.path)
        return dict(sorted(sites.items()))

    def report(self, folder: Path) -> None:
        """Write `folder`/skipped.csv (line, reason) if rows were left out, else let none stand.

        Raises DataError where all were.
        """
        (folder / "skipped.csv").unlink(missing_ok=True)
        if self.skipped:
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(folder / "skipped.csv", ("line", "reason"), sorted(self.skipped.items()))
            _log.warning("%d rows were left out; %s says why.", len(self.skipped), folder / "skipped.csv")
        if all(row.line in self.skipped for row in self.rows):
            counts = Counter(self.skipped.values()).most_common(3)
            reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in counts)
            raise DataError(
                f"{self.path}: has no usable row: {reasons or 'it has none at all'}. Mend the table."
            )


def read_source(path: Path) -> Source:
    """Return a comma-separated UTF-8 table with a header line, its cells stripped; raises DataError."""
    (_, header), *lines = read_lines(path) or [(1, ())]
    named = [name for name in header if name]
    if not named or len(set(named)) != len(named):
        raise DataError(f"{path}: the first line must name the columns, and none twice.")
    source = Source(path, header, [])
    for line, row in lines:
        if len(row) == len(header):
            source.rows.append(Row(line, dict(zip(header, row, strict=True))))
        else:
            source.skipped[line] = f"has {len(row)} cells where the header has {len(header)}"
    return source


def number(cell: str) -> float | int | None:
    """Return a cell as a finite number, whole where it is written so; None where it is none."""
    value = cells.number(cell)
    return int(cell) if value is not None and cell.lstrip("+-").isdecimal() else value
