"""What `zamenis-hospital status` shows of a node whose files are damaged, in a narrow terminal."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.home import Home
from common import service
from tests.client.test_node import joined, online
from tests.enrolling import coordinator


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hospital that knows another one."""
    folder = tmp_path_factory.mktemp("federation")
    there = coordinator(folder / "demo")
    with online(there, time.time) as port:
        joined(there, folder / "bern", port, "st-bern")
        joined(there, folder / "anna", port, "st-anna")
    return folder / "anna"


@pytest.fixture
def home(federation: Path, tmp_path: Path) -> Home:
    """Return a copy of that hospital's node."""
    return Home.load(Path(shutil.copytree(federation, tmp_path / "anna")))


def told(home: Home) -> str:
    """Return what `status` shows, which never ends with an error."""
    shown = CliRunner().invoke(app, ["status", "--dir", str(home.directory)])
    assert shown.exit_code == 0, shown.output
    narrow = (len(line) <= 80 or len(line.split()) <= 2 for line in shown.output.splitlines())
    assert all(narrow), "nothing but a path is longer"
    return shown.output


def test_the_whole_status(home: Home) -> None:
    """The fingerprint in two lines that can be read out, eight groups each."""
    lines = told(home).splitlines()
    assert "others         st-bern" in lines
    assert "not confirmed  st-bern; zamenis-hospital confirm" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("fingerprint"))
    halves = lines[at].split()[1:], lines[at + 1].split()
    assert [len(half) for half in halves] == [8, 8]
    assert " ".join(word for half in halves for word in half) == home.fingerprint


@pytest.mark.parametrize(
    ("file", "name", "words"),
    [
        ("peers.toml", "others", "peers.toml: is damaged. Restore it from a backup, or join again."),
        ("policy.toml", "policy", "policy.toml: not valid TOML"),
        ("keys/identity.key", "fingerprint", "identity.key: is missing or damaged."),
    ],
)
def test_a_damaged_file_is_told_in_its_place(home: Home, file: str, name: str, words: str) -> None:
    """The rest is shown as ever."""
    text = "format = 2" if file == "peers.toml" else "= no toml"
    (home.directory / file).write_text(text)
    lines = told(home)
    place = lines.partition(f"\n{name} ")[2]
    assert words in " ".join(place.split())
    assert "federation     demo at 127.0.0.1" in lines
    assert "hours          any" in lines


def test_a_node_is_not_started_with_a_damaged_peers_toml(home: Home) -> None:
    """The error comes before anything runs, not after."""
    home.peers_file.write_text("format = 2")
    ended = CliRunner().invoke(app, ["start", "--as-root", "--dir", str(home.directory)])
    assert "peers.toml: is damaged" in str(ended.exception)
    assert service.status(home.directory, "node") is None
