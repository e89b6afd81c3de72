"""Seconds per round and overhead per message of a deployment: our node against plain Flower's SuperNode.

    python benchmarks/deploy.py [--quick]

Three hospitals, a conv4, Reptile with 2 local steps; everything on this machine, one side after the other:

- ours: a rehearsal's federation, by the commands that coordinators and hospitals type;
- plain Flower: `flower-superlink` and three `flower-supernode`, with Flower's defaults, and once more with
  FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.01, Flower's shortest, in every process's environment.

Every side has TLS and node authentication, the same hospital folders, the same ClientApp on one thread per
hospital and the same coordinator's rounds, phi to next phi; the benchmark fails unless all end with the same
phi, bit for bit. Plain Flower waits for replies in two ways: by our coordinator's `exchange`, which looks
every 2 to 100 ms, so that only the nodes differ; and by its own `send_and_receive`, which looks every 3 s.

The bare update is what a node computes with its cases and network at hand and nothing around it, in one
forked process per hospital, all at once: as the three nodes share this machine's cores, and less than one
after the other, so that nothing is subtracted as computing that a deployment need not have spent.
Overhead per message = (seconds per round - seconds of a bare round) / 3: a round's overhead shared among
the messages that are under way together, not the time that one message takes.

Medians over rounds, the first apart. The machine's moods show in the bare rounds, which are taken just
before and after each side and subtracted from that side. Not measured: starting and enrolling, a network
(all is loopback), checkpoints between rounds, secure aggregation (switched off here, as plain Flower's side
has none; benchmarks/secure_round.py has its cost), other sizes of hospitals and networks, or nodes that have
idled: ours then looks less often, up to every 2 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stock.rounds import WAYS, Rounds
from stock_flower import await_nodes, supernodes

from client.part import Part
from client.site import Node, hospital_of
from common import config as configuration
from common.config import Config
from server.control import Control
from server.federation import Federation
from server.link import open_run
from simulation.phantoms import write_hospitals
from simulation.rehearse import federation
from simulation.run import nodes_of

SITES = 3
SETTINGS = [
    f"phantoms.sites={SITES}",
    "phantoms.patients=60",
    "phantoms.matrix=64",
    "training.inner-steps=2",
    "engine.device=cpu",
    'experiment.algorithms=["reptile"]',
    'secure-aggregation.where="nowhere"',
]
BARE_ROUNDS = 10
TUNED = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.01"}
Seconds = dict[str, list[float]]
ROWS = {
    ("ours", "prompt"): "ours",
    ("default", "stock"): "Flower's defaults",
    ("default", "prompt"): "Flower's defaults, our exchange",
    ("tuned", "stock"): "poll interval 0.01 s",
    ("tuned", "prompt"): "poll interval 0.01 s, our exchange",
}
COLUMNS = {
    "bare round": "bare_s",
    "first round": "first_s",
    "round": "round_s",
    "slowest": "slowest_s",
    "overhead a message": "overhead_s",
    "round / ours": "round_ratio",
    "overhead / ours": "overhead_ratio",
}


class Bare:
    """Every hospital's local update and nothing around it, in forked processes; use as a context manager."""

    def __init__(self, config: Config, nodes: list[Mapping[str, Any]]) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipes, self._processes = [], []
        for node in nodes:
            ours, theirs = fork.Pipe()
            process = fork.Process(target=_update, args=(config, node, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Bare:
        """Let every process open its hospital and compute once."""
        self.round()
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def round(self) -> float:
        """Return the seconds until all hospitals have computed one update."""
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - started


def _update(config: Config, node: Mapping[str, Any], pipe: Connection) -> None:
    """Compute local updates of one hospital, from the initial weights, for as long as they are asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    at = Node.of(node)
    part = Part(at, hospital_of(at, config.to_json()), config, "reptile")
    phi = part.like()
    while pipe.recv():
        part.train(phi, run="", server_round=1)
        pipe.send(True)


class Quiet:
    """A rehearsal's progress, not shown."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase."""
        return lambda: None


def on_ours(config: Config, folders: list[Path], stage: Path, rounds: int) -> tuple[Seconds, str]:
    """Return the seconds of our rounds, the first apart, and the digest of phi at the end."""
    with federation(folders, config, stage, Quiet()) as rehearsal:
        for one in folders:
            policy = rehearsal.node(one.name) / "policy.toml"
            policy.write_text(policy.read_text().replace('"required"', '"optional"'))
        coordinator = Federation.load(rehearsal.coordinator)
        await_nodes(Control(coordinator), SITES, coordinator.logs)
        with open_run(coordinator, rehearsal.stage) as grid:
            played = Rounds(grid, config)
            first, *others = (played.timed(WAYS["prompt"]) for _ in range(2 * rounds + 1))
    return {"first": [first], "prompt": others}, played.digest()


def on_stock(
    config: Config, nodes: list[Mapping[str, Any]], folder: Path, rounds: int, extra: Mapping[str, str]
) -> tuple[Seconds, str]:
    """Return the same of plain Flower, in both ways of waiting for replies."""
    folder.mkdir()
    with supernodes(nodes, folder, extra) as stock:
        told = stock.play(config, rounds)
    return told["seconds"], told["phi"]


def measure(folder: Path, rounds: int) -> dict[str, Seconds]:
    """Return the seconds of every round on every side, and of the bare rounds just before and after it."""
    config = configuration.load(None, [*SETTINGS, f"training.rounds={2 * rounds + 1}"])
    folders = write_hospitals(
        folder / "hospitals", config.phantoms, seed=config.seed, classes=config.task.classes
    )
    nodes = nodes_of(config, folders, [])
    sides: dict[str, Callable[[], tuple[Seconds, str]]] = {
        "ours": lambda: on_ours(config, folders, folder / "ours" / "stage", rounds),
        "default": lambda: on_stock(config, nodes, folder / "default", rounds, {}),
        "tuned": lambda: on_stock(config, nodes, folder / "tuned", rounds, TUNED),
    }
    seen: dict[str, Seconds] = {}
    digests = {}
    with Bare(config, nodes) as bare:
        before = [bare.round() for _ in range(BARE_ROUNDS)]
        for name, side in sides.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            seen[name], digests[name] = side()
            after = [bare.round() for _ in range(BARE_ROUNDS)]
            seen[name]["bare"] = before + after
            before = after
    assert len(set(digests.values())) == 1, f"the sides did not do the same work: {digests}"
    return seen


def figures_of(seen: Mapping[str, Seconds]) -> dict[str, float]:
    """Return the medians, overheads and ratios by name."""
    figures: dict[str, float] = {}
    for side, way in ROWS:
        bare = statistics.median(seen[side]["bare"])
        round_ = statistics.median(seen[side][way])
        overhead = (round_ - bare) / SITES
        own = {"bare_s": bare, "round_s": round_, "slowest_s": max(seen[side][way]), "overhead_s": overhead}
        if way == "prompt":
            own["first_s"] = seen[side]["first"][0]
        if side != "ours":
            own["round_ratio"] = round_ / figures["ours_prompt_round_s"]
            own["overhead_ratio"] = overhead / figures["ours_prompt_overhead_s"]
        figures |= {f"{side}_{way}_{name}": value for name, value in own.items()}
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Print the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 8 in each way of waiting")
    rounds = 2 if parser.parse_args().quick else 8
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        figures = figures_of(measure(Path(scratch), rounds))
    table = Table(title=f"{SITES} hospitals, conv4, 2 local steps (seconds)")
    for heading in ("node", *COLUMNS):
        table.add_column(heading, justify="left" if heading == "node" else "right")
    for (side, way), words in ROWS.items():
        cells = (figures.get(f"{side}_{way}_{name}") for name in COLUMNS.values())
        table.add_row(words, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
