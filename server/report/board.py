"""One metric of a run, laid out as people read it: per K, hospitals down and algorithms across.

The page (`server.report.page`) and the terminal (`server.report.console`) both draw a `Board`, so they
cannot disagree. Averages over hospitals compare like with like: only hospitals at which every
algorithm has a number count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.tasks import LOWER_IS_BETTER as LOWER
from common.tasks import TITLES

Row = Mapping[str, Any]
Key = tuple[str, str, int]
"""Algorithm, hospital, K."""
LOWER_IS_BETTER = LOWER | {"hurt"}


@dataclass(frozen=True)
class Cell:
    """One number of a table, with the bounds of its 95 % interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    fell_back: float | None = None
    """Share of draws in which the safeguard fell back; only in the table of draws that hurt."""
    worst_draw: float | None = None
    site: str = ""
    """The hospital that a `worst hospital` cell speaks of."""
    best: bool = False

    @property
    def verdict(self) -> int:
        """Return 1 or -1 where the whole interval lies above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Line:
    """One line of a table: a hospital's, the mean's or the worst hospital's; a cell per algorithm."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Group:
    """All lines of one K."""

    shot: int
    hospitals: tuple[Line, ...]
    mean: Line
    worst: Line


@dataclass(frozen=True)
class Board:
    """One metric of a run; names keep the order in which the results give them."""

    metric: str
    algorithms: tuple[str, ...]
    sites: tuple[str, ...]
    shots: tuple[int, ...]
    cells: Mapping[Key, Cell]

    @classmethod
    def of(cls, rows: Iterable[Row], metric: str, value: str = "mean") -> Board:
        """Return the rows of `metric`; `value` names the key that holds a row's number."""
        mine = [row for row in rows if row.get("metric", metric) == metric and row.get(value) is not None]
        cells = {
            (row["algorithm"], row["site"], row["shot"]): Cell(
                row[value], row.get("ci_low"), row.get("ci_high"), row.get("fell_back"), row.get("worst")
            )
            for row in mine
        }
        return cls(
            metric,
            tuple(dict.fromkeys(row["algorithm"] for row in mine)),
            tuple(dict.fromkeys(row["site"] for row in mine)),
            tuple(sorted({row["shot"] for row in mine})),
            cells,
        )

    @property
    def title(self) -> str:
        """Return the metric's name as a reader knows it."""
        return TITLES.get(self.metric, self.metric)

    @property
    def lower_is_better(self) -> bool:
        """Return whether a smaller number is the better one."""
        return self.metric in LOWER_IS_BETTER

    def measured(self, shot: int) -> list[str]:
        """Return the algorithms with any number at this K."""
        return [
            name for name in self.algorithms if any((name, site, shot) in self.cells for site in self.sites)
        ]

    def common(self, shot: int) -> list[str]:
        """Return the hospitals at which every algorithm measured at this K has a number."""
        measured = self.measured(shot)
        return [site for site in self.sites if all((name, site, shot) in self.cells for name in measured)]

    def mean(self, algorithm: str, shot: int) -> Cell | None:
        """Return the mean over the common hospitals; None where there is none."""
        values = [cell.value for _, cell in self._along(algorithm, shot)]
        return Cell(sum(values) / len(values)) if values else None

    def worst(self, algorithm: str, shot: int) -> Cell | None:
        """Return the algorithm's worst common hospital; None where there is none."""
        found = self._along(algorithm, shot)
        if not found:
            return None
        site, cell = min(found, key=lambda pair: self.goodness(pair[1]))
        return replace(cell, site=site)

    def groups(self) -> list[Group]:
        """Return the whole board, a group per K; the best cell of each line is marked."""
        return [self._group(shot) for shot in self.shots]

    def best(self, values: Mapping[str, float]) -> frozenset[str]:
        """Return who has the best value as printed: equal to three decimals is a tie."""
        printed = {name: round(self.goodness(Cell(value)), 3) for name, value in values.items()}
        return frozenset(name for name, value in printed.items() if value == max(printed.values()))

    def goodness(self, cell: Cell) -> float:
        """Return the cell's value such that more is better."""
        return -cell.value if self.lower_is_better else cell.value

    def _along(self, algorithm: str, shot: int) -> list[tuple[str, Cell]]:
        keys = [(algorithm, site, shot) for site in self.common(shot)]
        return [(key[1], self.cells[key]) for key in keys if key in self.cells]

    def _group(self, shot: int) -> Group:
        sites = [s for s in self.sites if any((name, s, shot) in self.cells for name in self.algorithms)]
        common = len(self.common(shot))
        mean = "mean" if common == len(sites) else f"mean {common}/{len(sites)}"
        return Group(
            shot,
            tuple(
                self._line(s, [self.cells.get((name, s, shot)) for name in self.algorithms]) for s in sites
            ),
            self._line(mean, [self.mean(name, shot) for name in self.algorithms]),
            self._line("worst", [self.worst(name, shot) for name in self.algorithms]),
        )

    def _line(self, name: str, cells: Sequence[Cell | None]) -> Line:
        values = {
            algorithm: cell.value for algorithm, cell in zip(self.algorithms, cells, strict=True) if cell
        }
        best = self.best(values) if len(values) > 1 else frozenset()
        marked = zip(self.algorithms, cells, strict=True)
        return Line(name, tuple(cell and replace(cell, best=algorithm in best) for algorithm, cell in marked))
