"""Milliseconds per client update on each engine, against the bare loop of the same SGD steps.

    python benchmarks/engine.py [--quick]

20 hospitals, 10 SGD steps of batch 10 per update, 28x28 images or 28-column tables. The bare loop and
the in-process engine take turns round by round in the same process, so that the machine's moods hit
all alike; ratios are medians over rounds. Ray runs after them. An update on N workers is the round's
wall time divided by its sites.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from rich.console import Console
from rich.table import Table

from client.app import app as client_app
from client.site import Node, NodeConfig, hospital_of
from common import config as configuration
from common import weights
from common.config import Config
from common.initialise import learner_for
from common.inner_loop import minibatches
from common.seeds import Draws
from server import evaluation, outer_loop
from server.app import common_input_shape, initial_weights, meta_train
from server.exchange import exchange
from server.strategy import MetaStrategy
from simulation.engines import run
from simulation.grid import InProcessGrid
from simulation.phantoms import write_hospitals

SITES = 20
STEPS = [
    "training.inner-optimizer=sgd",
    "training.inner-steps=10",
    "training.batch-size=10",
    "training.inner-lr=0.01",
]
MODELS = {
    "mlp": ["model.name=mlp", "model.width=128"],
    "conv4-32": ["model.name=conv4", "model.width=32", "data.image-size=28"],
    "conv4-64": ["model.name=conv4", "model.width=64", "data.image-size=28"],
}


def write_tables(parent: Path) -> list[Path]:
    """Write SITES hospitals with tables of 28 columns and 60 patients."""
    chance = np.random.default_rng(0)
    names = [f"c{number}" for number in range(28)]
    for site in range(SITES):
        folder = parent / f"table-{site:02}"
        folder.mkdir(parents=True)
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "finding"])
            for row in range(60):
                values = chance.normal(size=28) + row % 2
                writer.writerow([*map(str, values), ("normal", "nodule")[row % 2]])
        (folder / "schema.toml").write_text(f'label = "finding"\nnumeric = {json.dumps(names)}\n')
    return sorted(parent.iterdir())


def nodes_of(folders: list[Path]) -> list[NodeConfig]:
    """Return one single-threaded CPU node per hospital."""
    return [{"site": one.name, "hospital": str(one), "device": "cpu", "threads": 1} for one in folders]


class Bare:
    """The same steps on the same cases by the same optimiser, with nothing around them."""

    def __init__(self, config: Config, nodes: list[NodeConfig]) -> None:
        self.hospitals = [hospital_of(Node.of(node), config.to_json()) for node in nodes]
        shape = tuple(self.hospitals[0].adaptation.inputs.shape[1:])
        self.learner = learner_for(config, shape, torch.device("cpu"))
        self.training = config.training_of("reptile")

    def round(self) -> float:
        """Return the seconds of one update per site."""
        network, settings = self.learner.network, self.training
        loss_of, draws = self.learner.task.loss, Draws.of_seed(0)
        started = time.perf_counter()
        for hospital in self.hospitals:
            cases = hospital.adaptation
            optimizer = torch.optim.SGD(network.parameters(), settings.inner_lr)
            for rows, _ in minibatches(cases, settings.batch_size, settings.inner_steps, draws):
                optimizer.zero_grad()
                loss = loss_of(network(cases.inputs[rows]), cases.labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return time.perf_counter() - started


class BarePair:
    """The bare loop in two forked processes, half of the hospitals each: what two cores can give here."""

    def __init__(self, bare: Bare) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes = []
        for half in (0, 1):
            ours, theirs = fork.Pipe()
            fork.Process(target=self._work, args=(bare, half, theirs), daemon=True).start()
            self.pipes.append(ours)

    @staticmethod
    def _work(bare: Bare, half: int, pipe: Connection) -> None:
        torch.set_num_threads(1)
        bare.hospitals = bare.hospitals[half::2]
        while pipe.recv():
            pipe.send(bare.round())

    def round(self) -> float:
        """Return the seconds until both are done."""
        started = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(True)
        for pipe in self.pipes:
            pipe.recv()
        return time.perf_counter() - started


class Federated:
    """One strategy on one grid, run round by round."""

    def __init__(self, config: Config, grid: Grid) -> None:
        self.grid = grid
        sites = evaluation.describe(grid, config).all_of_them()
        phi = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        nodes = {name: node for name, (node, _) in sites.items()}
        self.strategy = MetaStrategy(config, "reptile", nodes, outer_loop.init(phi))

    def round(self) -> float:
        """Return the seconds of one round."""
        started = time.perf_counter()
        turn = self.strategy.state.server_round + 1
        messages = self.strategy.configure_train(turn, ArrayRecord(), ConfigRecord(), self.grid)
        replies = (reply for _, reply in exchange(self.grid, messages, timeout=600))
        self.strategy.aggregate_train(turn, replies)
        return time.perf_counter() - started


def in_process(config: Config, nodes: list[NodeConfig], rounds: int) -> dict[str, float]:
    """Return seconds per round of the bare loop and of 1 and 2 workers, and the ratios' medians."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        two = Federated(config, stack.enter_context(InProcessGrid(client_app, nodes, workers=2)))
        one = Federated(config, stack.enter_context(InProcessGrid(client_app, nodes, workers=1)))
        bare = Bare(config, nodes)
        pair = BarePair(bare)
        turns: list[Callable[[], float]] = [bare.round, one.round, two.round, pair.round]
        for turn in turns:
            turn()
        seen = [[turn() for turn in turns] for _ in range(rounds)]
    return {
        "bare": statistics.median(row[0] for row in seen),
        "one": statistics.median(row[1] for row in seen),
        "two": statistics.median(row[2] for row in seen),
        "pair": statistics.median(row[3] for row in seen),
        "two/pair": statistics.median(row[2] / row[3] for row in seen),
        "bare speedup": statistics.median(row[0] / row[3] for row in seen),
        "one/bare": statistics.median(row[1] / row[0] for row in seen),
        "speedup": statistics.median(row[1] / row[2] for row in seen),
        "overhead": statistics.median(row[1] - row[0] for row in seen),
    }


def on_ray(config: Config, nodes: list[NodeConfig], rounds: int) -> float:
    """Return the median seconds of a round on Flower's Ray engine with two actors."""

    def program(grid: Grid) -> float:
        federated = Federated(config, grid)
        federated.round()
        return statistics.median(federated.round() for _ in range(rounds))

    engine = config.engine.model_copy(update={"name": "ray", "workers": 2})
    return run(program, nodes, engine)


def end_to_end(config: Config, nodes: list[NodeConfig], engine: str, folder: Path) -> tuple[float, float]:
    """Return the seconds from nothing to the first round and to the end of a 5-round job with checkpoints."""
    started = time.perf_counter()
    finished: list[float] = []

    def program(grid: Grid) -> None:
        sites = evaluation.describe(grid, config).all_of_them()
        phi = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        done = folder / engine
        meta_train(grid, config, "reptile", sites, phi, done, lambda _: finished.append(time.perf_counter()))

    run(program, nodes, config.engine.model_copy(update={"name": engine, "workers": 2}))
    return finished[0] - started, time.perf_counter() - started


def measure(
    model: str, config: Config, nodes: list[NodeConfig], folder: Path, quick: bool
) -> dict[str, float]:
    """Return one model's figures."""
    seen = in_process(config, nodes, rounds=2 if quick else 15)
    first, whole = end_to_end(config, nodes, "inprocess", folder)
    found = {f"{name}_ms": 1000 * seen[name] / SITES for name in ("bare", "one", "pair", "two", "overhead")}
    found |= {
        "one_over_bare": seen["one/bare"],
        "speedup_2": seen["speedup"],
        "bare_speedup_2": seen["bare speedup"],
        "two_over_pair": seen["two/pair"],
        "first_round_s": first,
        "job_s": whole,
    }
    if not quick:
        found["ray_ms"] = 1000 * on_ray(config, nodes, 3) / SITES
        _, found["job_ray_s"] = end_to_end(config, nodes, "ray", folder)
        found["job_ratio"] = found["job_ray_s"] / whole
    key = model.replace("-", "_")
    return {f"{key}_{name}": round(value, 3) for name, value in found.items()}


def shown(title: str, columns: dict[str, str], figures: dict[str, float]) -> Table:
    """Return a table with a row per model; `columns` maps a heading to a figure's name."""
    table = Table(title=title)
    table.add_column("model")
    for heading in columns:
        table.add_column(heading, justify="right")
    for model in MODELS:
        cells = (figures.get(f"{model.replace('-', '_')}_{name}") for name in columns.values())
        table.add_row(model, *("not run" if cell is None else f"{cell:.2f}" for cell in cells))
    return table


UPDATES = {
    "bare loop": "bare_ms",
    "1 worker": "one_ms",
    "bare, 2 processes": "pair_ms",
    "2 workers": "two_ms",
    "Ray, 2 actors": "ray_ms",
    "1 worker / bare": "one_over_bare",
    "2 workers: x faster": "speedup_2",
    "2 bare: x faster": "bare_speedup_2",
}
JOBS = {
    "first round": "first_round_s",
    "in process": "job_s",
    "Ray": "job_ray_s",
    "Ray / in process": "job_ratio",
}


def main() -> None:
    """Print the tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no Ray: under 40 s on two cores")
    quick = parser.parse_args().quick
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tables = write_tables(folder / "tables")
        small = [f"phantoms.sites={SITES}", "phantoms.patients=30", "phantoms.matrix=64"]
        ground = configuration.load(None, small)
        images = write_hospitals(folder / "images", ground.phantoms, seed=0, classes=ground.task.classes)
        for model, settings in MODELS.items():
            config = configuration.load(None, [*STEPS, *settings, "training.rounds=5"])
            nodes = nodes_of(tables if model == "mlp" else images)
            figures |= measure(model, config, nodes, folder / model, quick)
    console = Console(width=130)
    console.print(shown("Milliseconds per client update (10 SGD steps of batch 10)", UPDATES, figures))
    console.print(shown("A job of 5 rounds over 20 hospitals, 2 workers (seconds)", JOBS, figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
