"""A run's end on the terminal: the table, and in a few lines what else a person should know.

Nothing here relies on colour: what is best carries an asterisk. Names that come from results are
plain text to Rich, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from server.report.board import Board, Cell, Group, Row
from server.report.page import headline, percent

SHOWN_HOSPITALS = 12
"""A run with more shows means and worst hospitals alone; the report has them all."""
SHOWN_LEFT_OUT = 6


def tell(console: Console, results: Row, folder: Path) -> None:
    """Print a finished run's table, where it has one, its summary, and the files that it left in `folder`."""
    if results["rows"]:
        console.print(result_table(results))
    names = ("report.html", "results.json", "phi.safetensors", "config.toml")
    console.print(summary(results, {name: folder / name for name in names}))


def result_table(results: Row) -> Table:
    """Return the headline metric: per K a line per hospital, then the mean and the worst hospital."""
    board = Board.of(results.get("rows") or [], results["metric"])
    brief = len(board.sites) > SHOWN_HOSPITALS
    rest = f"; all {len(board.sites)} hospitals are in the report" if brief else ""
    table = Table(
        title=f"{board.title} at the held-out hospital{', lower is better' if board.lower_is_better else ''}",
        caption=f"± half the 95 % interval; * best of the line{rest}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("K", justify="right")
    table.add_column("hospital", overflow="fold", min_width=8)
    for name in board.algorithms:
        table.add_column(Text(name), no_wrap=True)
    for group in board.groups():
        _add(table, group, brief)
    return table


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


def _add(table: Table, group: Group, brief: bool) -> None:
    """Add one K's lines; K itself is told once."""
    lines = [] if brief else list(group.hospitals)
    if len(group.hospitals) > 1:
        lines += [group.mean, group.worst]
    for number, line in enumerate(lines):
        shot = str(group.shot) if number == 0 else ""
        cells = [_cell(cell) for cell in line.cells]
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
    said = [
        f"Left out: {one['site']} at K = {one['shot']}: {one['reason']}." for one in left_out[:SHOWN_LEFT_OUT]
    ]
    more = len(left_out) - len(said)
    return [*said, f"Left out: {more} more; the report names them."] if more > 0 else said
