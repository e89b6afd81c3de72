"""Folders as Zamenis 0.1.0 left them (`make_0_1_0.py` made the archive), in a folder of the test's own."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.home import Home
from server.federation import Federation

ARCHIVE = Path(__file__).with_name("0_1_0.tar.gz")
STAGE = "@STAGE@"
"""Stands in the archive for the folder that it was made in."""


@dataclass(frozen=True)
class Older:
    """A federation of 0.1.0, whose coordinator was lost in the second round of a secure run."""

    stage: Path
    expected: dict[str, Any]
    """What 0.1.0 itself said of these folders."""

    def home(self, site: str) -> Home:
        """Return a hospital's node."""
        return Home.load(self.stage / "nodes" / site)

    @property
    def homes(self) -> dict[str, Home]:
        """The three hospitals' nodes, by name."""
        return {folder.name: self.home(folder.name) for folder in sorted((self.stage / "nodes").iterdir())}

    @property
    def federation(self) -> Federation:
        """The coordinator's folder."""
        return Federation.load(self.stage / "coordinator")


@pytest.fixture
def older(tmp_path: Path) -> Older:
    """Return the federation, unpacked."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="tar")
    for path in tmp_path.rglob("*.toml"):
        path.write_text(path.read_text().replace(STAGE, str(tmp_path)))
    return Older(tmp_path, json.loads((tmp_path / "expected.json").read_text()))
