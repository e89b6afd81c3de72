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
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid
from rich.console import Console
from rich.table import Table

from client.app import app as client_app
from client.site import Node, hospital_of
from common import config as configuration
from common import weights
from common.config import Config
from common.initialise import learner_for
from common.inner_loop import minibatches
from server import evaluation, outer_loop
from server.app import common_input_shape, initial_weights, meta_train
from server.strategy import MetaStrategy
from simulation.engines import run
from simulation.grid import InProcessGrid, NodeConfig
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
        loss_of, generator = self.learner.task.loss, torch.Generator()
        started = time.perf_counter()
        for hospital in self.hospitals:
            cases = hospital.adaptation
            optimizer = torch.optim.SGD(network.parameters(), settings.inner_lr)
            for chosen in minibatches(len(cases), settings.batch_size, settings.inner_steps, generator):
                optimizer.zero_grad()
                loss = loss_of(network(cases.inputs[chosen]), cases.labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return time.perf_counter() - started


class Federated:
    """One strategy on one grid, run round by round."""

    def __init__(self, config: Config, grid: Grid) -> None:
        self.grid = grid
        sites = evaluation.describe(grid, config)
        phi = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        nodes = {name: node for name, (node, _) in sites.items()}
        self.strategy = MetaStrategy(config, "reptile", nodes, outer_loop.init(phi))

    def round(self) -> float:
        """Return the seconds of one round."""
        from server.exchange import exchange

        started = time.perf_counter()
        turn = self.strategy.state.server_round + 1
        from flwr.app import ArrayRecord, ConfigRecord

        messages = self.strategy.configure_train(turn, ArrayRecord(), ConfigRecord(), self.grid)
        self.strategy.aggregate_train(turn, exchange(self.grid, messages, timeout=600))
        return time.perf_counter() - started


def in_process(config: Config, nodes: list[NodeConfig], rounds: int) -> dict[str, float]:
    """Return seconds per round of the bare loop and of 1 and 2 workers, and the ratios' medians."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        two = Federated(config, stack.enter_context(InProcessGrid(client_app, nodes, workers=2)))
        one = Federated(config, stack.enter_context(InProcessGrid(client_app, nodes, workers=1)))
        bare = Bare(config, nodes)
        turns: list[Callable[[], float]] = [bare.round, one.round, two.round]
        for turn in turns:
            turn()
        seen = [[turn() for turn in turns] for _ in range(rounds)]
    return {
        "bare": statistics.median(row[0] for row in seen),
        "one": statistics.median(row[1] for row in seen),
        "two": statistics.median(row[2] for row in seen),
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
        sites = evaluation.describe(grid, config)
        phi = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        ids = {name: node for name, (node, _) in sites.items()}
        meta_train(
            grid, config, "reptile", ids, phi, folder / engine, lambda _: finished.append(time.perf_counter())
        )

    run(program, nodes, config.engine.model_copy(update={"name": engine, "workers": 2}))
    return finished[0] - started, time.perf_counter() - started


def main() -> None:
    """Print the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no Ray: under 40 s on two cores")
    quick = parser.parse_args().quick
    table = Table(title="Milliseconds per client update (10 SGD steps of batch 10)")
    for column in (
        "model",
        "bare loop",
        "1 worker",
        "2 workers",
        "Ray, 2 actors",
        "1 worker / bare",
        "2 workers: x faster",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    jobs = Table(title="A job of 5 rounds over 20 hospitals, 2 workers (seconds)")
    for column in ("model", "first round", "in process", "Ray", "Ray / in process"):
        jobs.add_column(column, justify="left" if column == "model" else "right")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tables = write_tables(folder / "tables")
        phantoms = configuration.load(
            None, [f"phantoms.sites={SITES}", "phantoms.patients=30", "phantoms.matrix=64"]
        )
        images = write_hospitals(folder / "images", phantoms.phantoms, seed=0, classes=phantoms.task.classes)
        for model, settings in MODELS.items():
            config = configuration.load(None, [*STEPS, *settings, "training.rounds=5"])
            nodes = nodes_of(tables if model == "mlp" else images)
            seen = in_process(config, nodes, rounds=3 if quick else 15)
            per_update = {name: 1000 * seen[name] / SITES for name in ("bare", "one", "two", "overhead")}
            key = model.replace("-", "_")
            figures |= {f"{key}_{name}_ms": round(value, 3) for name, value in per_update.items()}
            figures |= {
                f"{key}_one_over_bare": round(seen["one/bare"], 3),
                f"{key}_speedup_2": round(seen["speedup"], 3),
            }
            ray = "not run"
            if not quick:
                figures[f"{key}_ray_ms"] = round(1000 * on_ray(config, nodes, 3) / SITES, 3)
                ray = f"{figures[f'{key}_ray_ms']:.1f}"
            table.add_row(
                model,
                *(f"{per_update[name]:.1f}" for name in ("bare", "one", "two")),
                ray,
                f"{seen['one/bare']:.2f}",
                f"{seen['speedup']:.2f}",
            )
            first, whole = end_to_end(config, nodes, "inprocess", folder / model)
            figures |= {f"{key}_first_round_s": round(first, 3), f"{key}_job_s": round(whole, 3)}
            against = ("not run", "")
            if not quick:
                _, slow = end_to_end(config, nodes, "ray", folder / model)
                figures |= {f"{key}_job_ray_s": round(slow, 3), f"{key}_job_ratio": round(slow / whole, 2)}
                against = (f"{slow:.1f}", f"{slow / whole:.1f}")
            jobs.add_row(model, f"{first:.2f}", f"{whole:.2f}", *against)
    console = Console(width=120)
    console.print(table)
    console.print(jobs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
