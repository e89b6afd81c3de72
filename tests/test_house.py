"""The house itself: its packages, its examples, its command, and that it tells nobody anything."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import client.cli
import server.cli
from common.config import load
from simulation import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["server", "client", "common", "simulation"])
def test_a_package_is_ours(name: str) -> None:
    """Short names are worth it only while nothing else that is installed answers to them."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).resolve() == ROOT / name / "__init__.py"


def test_every_example_is_a_configuration() -> None:
    """What stands in examples/, and the demonstration itself, loads without a complaint."""
    for example in (cli.DEMO, *sorted((ROOT / "examples").glob("*.toml"))):
        load(example)


def test_the_command_is_installed() -> None:
    """`zamenis-simulate` is the simulator's command line."""
    (command,) = entry_points(group="console_scripts", name="zamenis-simulate")
    assert command.load() is cli.main


def test_flower_tells_its_makers_nothing() -> None:
    """Importing `common` turns Flower's telemetry off before Flower is imported, even if it was on."""
    code = "import common, os; print(os.environ['FLWR_TELEMETRY_ENABLED'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"


def options(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every option of a command and of its subcommands, by name."""
    for name, below in getattr(command, "commands", {}).items():
        yield from options(below, (*path, name))
    yield from ((" ".join((*path, option.name)), option) for option in command.params)


@pytest.mark.parametrize("app", [client.cli.app, server.cli.app, cli.app])
def test_no_number_is_taken_without_a_bound(app: typer.Typer) -> None:
    """A size of -3 is an error of the command line, never a traceback of what would have used it."""
    numbers = [(name, each.type) for name, each in options(typer.main.get_command(app))]
    unbounded = [name for name, kind in numbers if kind.name in ("integer", "float")]
    assert unbounded == []
    assert any(kind.name in ("integer range", "float range") for _, kind in numbers)


@pytest.mark.parametrize("app", [client.cli.app, server.cli.app, cli.app])
def test_help_tells_what_every_argument_and_option_is(app: typer.Typer) -> None:
    """Also where click has its own mind of an argument's help."""
    told = [(name, each.help) for name, each in options(typer.main.get_command(app))]
    assert any(isinstance(each, typer.core.TyperArgument) for _, each in options(typer.main.get_command(app)))
    assert [name for name, help_ in told if not help_] == []


def test_without_a_command_the_demonstration_begins(tmp_path: Path) -> None:
    """As `make demo` begins it; its folder is there, and it is at work."""
    program = Path(sys.executable).parent / "zamenis-simulate"
    with subprocess.Popen(
        [str(program)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as demonstration:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("results/*/config.toml")) and time.monotonic() < deadline:
            assert demonstration.poll() is None, "it ended at once"
            time.sleep(0.1)
        demonstration.terminate()
    assert list(tmp_path.glob("results/*/config.toml"))


@pytest.mark.parametrize("app", [client.cli.app, server.cli.app, cli.app])
def test_every_command_line_tells_its_version(app: typer.Typer) -> None:
    """And nothing else happens: no demonstration begins."""
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"zamenis {version('zamenis')}\n")
