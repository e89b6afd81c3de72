"""What Linux alone has is hidden here: simulating works without it, and a federation is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import client.cli
import server.cli
from common.errors import ConfigError
from simulation.cli import app as simulate
from tests.simulation.test_run import arguments

HIDDEN = """
import asyncio, importlib, os, platform, sys
for name in ("torch._dynamo", "flwr.serverapp", "flwr.clientapp", "flwr.supercore.run", "matplotlib.pyplot",
             "pydicom", "highdicom", "sklearn", "rich.progress", "typer", "cryptography.hazmat", "tempfile"):
    importlib.import_module(name)
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.modules["msvcrt"] = type(sys)("msvcrt")
sys.modules["msvcrt"].LK_LOCK, sys.modules["msvcrt"].LK_NBLCK, sys.modules["msvcrt"].LK_UNLCK = 1, 2, 0
sys.modules["msvcrt"].locking = lambda file, mode, count: None
for name in ("fork", "register_at_fork", "sched_getaffinity", "posix_spawn", "geteuid", "O_DIRECTORY"):
    delattr(os, name)
sys.platform = "win32"
from simulation import cli
cli.main()
"""
"""The simulator without what Windows lacks; what others need of Linux is imported before."""


def hidden(*words: str) -> str:
    """Run the simulator without what Linux alone has; return what it printed."""
    done = subprocess.run([sys.executable, "-c", HIDDEN, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_simulation_needs_nothing_that_windows_lacks(
    table_hospitals: Callable[[int], Path], tmp_path: Path
) -> None:
    """Tables, by as many processes as may be: one."""
    out = tmp_path / "out"
    hidden(*arguments(out, table_hospitals(3), 'experiment.algorithms=["reptile"]', workers=2))
    assert (out / "phi.safetensors").is_file()


def test_images_are_read_without_a_process_of_their_own(tmp_path: Path) -> None:
    """Phantoms are written as DICOM, and read again."""
    out, hospitals = tmp_path / "out", tmp_path / "hospitals"
    hidden("phantoms", str(hospitals), "--sites", "2", "--patients", "12")
    small = ("training.rounds=1", "data.image-size=16", "model.width=4", "experiment.shots=[]")
    sets = [part for key in (f"data.hospitals={hospitals}", *small) for part in ("--set", key)]
    hidden("run", "--out", str(out), *sets)
    assert (out / "phi.safetensors").is_file()


@pytest.mark.parametrize(
    ("app", "words"),
    [(client.cli.app, ["status"]), (server.cli.app, ["status"]), (simulate, ["rehearse"])],
)
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_federation_is_refused_where_a_node_cannot_be_shut_in(
    monkeypatch: pytest.MonkeyPatch, app: typer.Typer, words: list[str], system: str
) -> None:
    """Before anything is done; `--version` and `--help` answer as ever."""
    monkeypatch.setattr(sys, "platform", system)
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, ConfigError)
    assert "runs on Linux alone" in str(ended.exception)
    assert CliRunner().invoke(app, ["--version"]).exit_code == 0
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
