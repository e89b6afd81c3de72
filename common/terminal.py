"""What every command line shares: how mistakes are told and how long work shows itself."""

from __future__ import annotations

import errno
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from io import TextIOWrapper
from itertools import zip_longest
from typing import Annotated, Any

import typer
import typer.main
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from typer.core import TyperArgument

from common.errors import ConfigError, ZamenisError

INTERRUPTED = 130
"""Exit code of Ctrl-C, into which Typer turns a KeyboardInterrupt."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that is full, or full for this user."""

COLUMNS = 80
"""Of the narrowest terminal."""
NAME = 15
"""Characters of a fact's name, with what keeps it from the fact."""
GAP, INDENT = "  ", "    "
"""Between two columns of a table, and before what stands below one of its rows."""
LEAST = 8
"""Characters that a column keeps, however many there are."""
PHASE, BAR = 32, 20
"""Characters of a phase's name and of its bar: with spinner, counts and time they fit."""


class _Argument(TyperArgument):
    """An argument whose help is shown: click from 8.4 on empties what typer 0.20 has set."""

    def __init__(self, *, help: str | None = None, **others: Any) -> None:  # noqa: A002 - typer's name
        super().__init__(**others)
        self.help = help


typer.main.TyperArgument = _Argument  # type: ignore[attr-defined]

console = Console(width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"zamenis {version('zamenis')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and end.")
]


def require_linux(program: str) -> None:
    """Raise ConfigError on another system, where nothing shuts a node in."""
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            f"{program} runs on Linux alone, and this is {platform.system()}. Use a Linux machine, or WSL 2 "
            "on Windows. zamenis-simulate works here, all but rehearse."
        )


def command_line(told: str, *, linux: str = "") -> typer.Typer:
    """Return a command line that has `--version` and no command yet; `linux` names one for Linux alone.

    Its tracebacks show no local variables, which may hold patients' rows.
    """
    app = typer.Typer(
        help=told,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def program(version: Version = False) -> None:
        if linux:
            require_linux(linux)

    return app


def run(app: typer.Typer, *, interrupted: str) -> None:
    """Run a command line; a mistake of the user's is one message and exit code 2, never a traceback.

    A terminal that has not every character shows question marks in their place.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except ZamenisError as error:
        errors.print("[bold red]Error[/]", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        errors.print("[bold red]Error[/]", end=" ")
        told = f"{error.filename or 'this machine'}: {error.strerror}." + " Make room." * (
            error.errno in FULL
        )
        errors.print(told, markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print(interrupted, markup=False)
        raise


def listed(text: str) -> list[str]:
    """Return the names of a list with commas, Chinese ones included."""
    return [name for part in text.replace("\uff0c", ",").split(",") if (name := part.strip())]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], below: Sequence[Iterable[str]] = ()) -> None:
    """Print aligned columns within a narrow terminal; what is too wide goes on below, in its column.

    A cell of several lines keeps them. `below` has for each row, where it has any, the lines that follow it
    as they are: a path can be copied whole.
    """
    cells = [[cell.splitlines() or [""] for cell in row] for row in (header, *rows)]
    widths = _widths(list(zip(*cells, strict=True)))
    for row, notes in zip_longest(cells, [(), *below], fillvalue=()):
        folded = [
            [part for line in cell for part in broken(line, width, fold=True)]
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*folded, fillvalue=""):
            padded = (part + " " * (width - cell_len(part)) for part, width in zip(line, widths, strict=True))
            plain(GAP.join(padded).rstrip())
        for note in notes:
            plain(INDENT + note)


def _widths(columns: Sequence[Sequence[Sequence[str]]]) -> list[int]:
    """Return each column's width: the widest give way, but none with a cell of several lines."""
    widths = [max(cell_len(line) for cell in column for line in cell) for column in columns]
    room = COLUMNS - len(GAP) * (len(widths) - 1)
    giving = [place for place, column in enumerate(columns) if all(len(cell) == 1 for cell in column)]
    while sum(widths) > room and giving:
        widest = max(giving, key=widths.__getitem__)
        if widths[widest] <= LEAST:
            break
        widths[widest] -= 1
    return widths


def broken(text: str, width: int = COLUMNS, *, fold: bool = False) -> list[str]:
    """Return `text` in lines of so many columns at most; a longer word stays whole unless it is to `fold`."""
    lines = [""]
    for word in text.split():
        for part in chop_cells(word, width) if fold else [word]:
            joined = f"{lines[-1]} {part}".lstrip()
            if cell_len(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines


def facts(lines: Mapping[str, str]) -> None:
    """Print names and what is to be said of each, within a narrow terminal; nothing where that is empty."""
    for name, words in lines.items():
        indent = name.ljust(NAME)
        for line in words.splitlines():
            for part in broken(line, COLUMNS - NAME):
                plain(indent + part)
                indent = " " * NAME


def plain(words: str) -> None:
    """Print a line as it is, unbroken."""
    console.print(words, markup=False, highlight=False, soft_wrap=True)


class ConsoleProgress:
    """Progress bars for the phases of a run."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase of so many steps; call what is returned after each."""
        task = self._bars.add_task(name.ljust(PHASE), total=steps)
        return lambda: self._bars.advance(task)

    def note(self, words: str) -> None:
        """Show a line above the bars."""
        plain(words)

    def counter(self, name: str) -> Callable[[int, int], None]:
        """Return what takes (done, total) as a phase goes on; one that does nothing shows no bar."""
        tasks: list[TaskID] = []

        def count(done: int, total: int) -> None:
            if not tasks:
                tasks.append(self._bars.add_task(name.ljust(PHASE), total=total))
            self._bars.update(tasks[0], completed=done, total=total)

        return count
