"""One federation of three hospitals for all tests of deployment; each connection is written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from simulation.rehearse import Rehearsal, federation
from simulation.run import simulate
from tests.conftest import write_table_hospital
from tests.deploy.stage import allow_plain, phi, small

WATCHER = """\
import os, sys
def watch(event, arguments, log=os.environ["ZAMENIS_TEST_CONNECTIONS"]):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        told = repr(arguments[1:] if event != "socket.getaddrinfo" else arguments[:2])
        with open(log, "a") as file:
            file.write(event + " " + told + chr(10))
sys.addaudithook(watch)
"""


class Quiet:
    """Progress that nobody watches."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase."""
        return lambda: None


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of three table hospitals."""
    parent = tmp_path_factory.mktemp("hospitals")
    return [
        write_table_hospital(parent / f"site-{number}", seed=number, rows=60 + 10 * number, shift=number / 4)
        for number in (1, 2, 3)
    ]


@pytest.fixture(scope="session")
def connections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the file in which every Python process of the federation writes each connection it opens."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "sitecustomize.py").write_text(WATCHER)
    log = folder / "connections"
    before = dict(os.environ)
    os.environ["ZAMENIS_TEST_CONNECTIONS"] = str(log)
    os.environ["PYTHONPATH"] = str(folder) + os.pathsep + os.environ.get("PYTHONPATH", "")
    yield log
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def stage(
    hospitals: list[Path], connections: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rehearsal]:
    """Return the running federation; a test that breaks something mends it again."""
    folder = tmp_path_factory.mktemp("federation") / "stage"
    with federation(hospitals, small(), folder, Quiet()) as rehearsal:
        for hospital in hospitals:
            allow_plain(rehearsal, hospital.name)
        yield rehearsal


@pytest.fixture(scope="session")
def undisturbed(hospitals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Return the weights that the same run ends with in process, where nothing ever goes wrong."""
    out = tmp_path_factory.mktemp("simulated")
    config = small(f'data.hospitals="{hospitals[0].parent}"', "engine.workers=1")
    simulate(config, out, Quiet(), command="")
    return phi(out)


@pytest.fixture(scope="session")
def summed(hospitals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Return the weights that the same run ends with in process, with secure aggregation."""
    out = tmp_path_factory.mktemp("summed")
    where = 'secure-aggregation.where="everywhere"'
    config = small(f'data.hospitals="{hospitals[0].parent}"', "engine.workers=1", where)
    simulate(config, out, Quiet(), command="")
    return phi(out)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Return the configuration file of a run."""
    path = tmp_path / "run.toml"
    path.write_text(small().to_toml())
    return path
