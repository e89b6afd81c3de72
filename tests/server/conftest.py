"""Table hospitals with secrets of their own, for tests of secure aggregation."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site import NodeConfig
from simulation.secrets import make_secrets
from tests.conftest import write_table_hospital
from tests.server.rounds import Make


@pytest.fixture
def five(tmp_path: Path) -> Make:
    """Return a function that makes N table hospitals with their secrets."""

    def make(count: int = 5) -> tuple[list[NodeConfig], dict[str, bytes]]:
        names = [f"site-{number}" for number in range(1, count + 1)]
        folders = [
            write_table_hospital(tmp_path / "hospitals" / name, seed=number, rows=40 + 5 * number)
            for number, name in enumerate(names)
        ]
        keys = make_secrets(tmp_path / "secrets", names)
        nodes: list[NodeConfig] = [
            {
                "site": one.name,
                "hospital": str(one),
                "threads": 1,
                "secrets": str(tmp_path / "secrets" / one.name),
            }
            for one in folders
        ]
        return nodes, keys

    return make
