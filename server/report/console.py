"""A run's end on the terminal: the table, and in a few lines what else a person should know.

Nothing here relies on colour: what is best carries an asterisk. Names that come from results are
plain text to Rich, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from server.report.board import Board, Cell, Group, Line, Row
from server.report.page import headline, percent

SHOWN_HOSPITALS = 12
"""A run with more shows means and worst hospitals alone; the report has them all."""
SHOWN_LEFT_OUT = 6


def tell(console: Console, results: Row, folder: Path) -> None:
    """Print a finished run's table, where it has one, its summary, and the files that it left in `folder`."""
    if results["rows"]:
        console.print(ResultTable(results))
    names = ("report.html", "results.json", "phi.safetensors", "config.toml")
    console.print(summary(results, {name: folder / name for name in names}))


@dataclass(frozen=True)
class ResultTable:
    """The headline metric: per K a line per hospital, then the mean and the worst hospital.

    Algorithms that do not fit beside the others follow in a table of their own.
    """

    results: Row

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as many tables as the width asks for."""
        board = Board.of(self.results.get("rows") or [], self.results["metric"])
        groups, brief = list(board.groups()), len(board.sites) > SHOWN_HOSPITALS
        names = list(board.algorithms)
        lines = _lines(groups, brief)
        cells = [_cell(cell) for line in lines for cell in line.cells]
        each = max(map(len, [*map(Text, names), *cells]), default=0)
        left = 4 + max((len(line.name) for line in lines), default=8)
        room = max(1, (options.max_width - left) // (each + 1))
        lower = ", lower is better" if board.lower_is_better else ""
        rest = f"; all {len(board.sites)} hospitals are in the report" if brief else ""
        yield Text(f"{board.title} at the held-out hospital{lower}", style="italic")
        for start in range(0, len(names), room):
            part = slice(start, start + room)
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
            table.add_column("K", justify="right")
            table.add_column("hospital", overflow="fold", min_width=8)
            for name in names[part]:
                table.add_column(Text(name), no_wrap=True)
            for group in groups:
                _add(table, group, brief, part)
            if start:
                yield ""
            yield table
        yield Text(f"± half the 95 % interval; * best of the line{rest}", style="dim italic")


def summary(results: Row, paths: Mapping[str, Path]) -> Lines:
    """Return the findings in words, where adapting hurt, what was left out, and where the files lie.

    `paths` maps what a file is, such as "report", to where it was written.
    """
    hurt = Board.of(results.get("hurt") or [], "hurt", value="share")
    parts = [
        *headline(results),
        *_hurt(hurt, results.get("hurt") or []),
        *_left_out(results.get("left_out") or []),
    ]
    width = max((len(name) for name in paths), default=0)
    parts += [f"{name:<{width}}  {path}" for name, path in paths.items()]
    return Lines(*(Text(part) for part in parts))


def _lines(groups: Iterable[Group], brief: bool) -> list[Line]:
    """Return the lines that are shown of each K."""
    lines: list[Line] = []
    for group in groups:
        lines += [] if brief else group.hospitals
        lines += [group.mean, group.worst] if len(group.hospitals) > 1 else []
    return lines


def _add(table: Table, group: Group, brief: bool, part: slice) -> None:
    """Add one K's lines with a part of the algorithms; K itself is told once."""
    lines = _lines([group], brief)
    for number, line in enumerate(lines):
        shot = str(group.shot) if number == 0 else ""
        cells = [_cell(cell) for cell in line.cells[part]]
        total = line in (group.mean, group.worst)
        table.add_row(
            shot, Text(line.name, style="italic" if total else ""), *cells, end_section=line is lines[-1]
        )


def _cell(cell: Cell | None) -> Text:
    """Return `0.912 ±.031*`."""
    if cell is None:
        return Text("-", style="dim")
    shown = f"{cell.value:.3f}"
    if not cell.site and cell.low is not None and cell.high is not None:
        shown += f" ±{(cell.high - cell.low) / 2:.3f}".replace("±0.", "±.")
    return Text(f"{shown}*", style="bold") if cell.best else Text(shown)


def _hurt(board: Board, rows: Iterable[Row]) -> list[str]:
    """Return per algorithm how often adapting scored below zero-shot, averaged over hospitals."""
    said = []
    for name in board.algorithms:
        shares = [f"{percent(cell.value)} (K = {k})" for k in board.shots if (cell := board.mean(name, k))]
        backs = [
            row["fell_back"] for row in rows if row["algorithm"] == name and row.get("fell_back") is not None
        ]
        safe = f"; the safeguard fell back in {percent(sum(backs) / len(backs))}" if backs else ""
        said.append(f"{name}: adapting hurt in {', '.join(shares)} of draws{safe}.")
    return said


def _left_out(left_out: list[Row]) -> list[str]:
    """Return what was left out and why, the first few in full."""
    said = []
    for one in left_out[:SHOWN_LEFT_OUT]:
        where = "" if one["shot"] is None else f" at K = {one['shot']}"
        said.append(f"Left out: {one['site']}{where}: {one['reason']}.")
    more = len(left_out) - len(said)
    return [*said, f"Left out: {more} more; the report names them."] if more > 0 else said
