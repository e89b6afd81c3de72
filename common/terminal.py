"""What every command line shares: how mistakes are told and how long work shows itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from common.errors import ZamenisError

INTERRUPTED = 130
"""Exit code of Ctrl-C, into which Typer turns a KeyboardInterrupt."""

console = Console(width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True)


def command_line(told: str) -> typer.Typer:
    """Return an empty command line; its tracebacks show no local variables, which may hold patients' rows."""
    return typer.Typer(
        help=told, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )


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
        told = f"{error.filename or 'this machine'}: {error.strerror}."
        errors.print(told, markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print(interrupted, markup=False)
        raise


def listed(text: str) -> list[str]:
    """Return the names of a list with commas, Chinese ones included."""
    return [name for part in text.replace("\uff0c", ",").split(",") if (name := part.strip())]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; no line is broken, so that what stands in a cell can be copied whole."""
    lines = [header, *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        plain("  ".join(cells).rstrip())


def plain(words: str) -> None:
    """Print a line as it is, unbroken."""
    console.print(words, markup=False, highlight=False, soft_wrap=True)


class ConsoleProgress:
    """Progress bars for the phases of a run."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
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
        task = self._bars.add_task(name.ljust(32), total=steps)
        return lambda: self._bars.advance(task)

    def note(self, words: str) -> None:
        """Show a line above the bars."""
        plain(words)

    def counter(self, name: str) -> Callable[[int, int], None]:
        """Return what takes (done, total) as a phase goes on."""
        task = self._bars.add_task(name.ljust(32), total=None)
        return lambda done, total: self._bars.update(task, completed=done, total=total)
