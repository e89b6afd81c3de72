"""FLamby's Fed-Heart-Disease table (arXiv 2210.04620) through this project's own pipeline.

    python benchmarks/flamby.py [--quick] [--table heart_flamby.csv]

Four centres become four table hospitals, opened, trained and averaged as any are: the real ClientApp on the
in-process grid. As in FLamby: 740 rows and its train/test split, features standardised per centre with its
training rows, one linear layer with a sigmoid, batch 4, accuracy at 0.5, mean over the centres' tests.
A seed changes the initial weights and the batches. The last line is one JSON object.

FLamby's pooled figure standardises the training rows together, but each centre's test rows by that centre.
The first row does the same, the next standardises per centre throughout. Its fine-tuning has lr 0.00316.
Our Adam has beta1 = 0, FLamby's 0.9: two rows are repeated with PyTorch's own Adam, outside of the pipeline.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from client.app import app as client_app
from client.dataset import Hospital, open_hospital
from client.site import NodeConfig
from common import config as configuration
from common import seeds, weights
from common.algorithms import ALGORITHMS
from common.cases import Cases, concatenate
from common.config import Config
from common.initialise import learner_for
from common.inner_loop import InnerLoop, minibatches
from common.learner import Learner
from common.weights import Weights
from server import evaluation
from server.app import initial_weights, meta_train
from simulation.grid import InProcessGrid

TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "heart_4site" / "heart_flamby.csv"
NOT_FEATURES = ("site", "set", "disease")
BATCH, EPOCHS, ROUNDS, STEPS = 4, 50, 15, 100
ADAM_LR, SGD_LR, HIGHER_SGD_LR = 0.001, 0.001, 0.00316


@dataclass(frozen=True)
class Row:
    """One line of the table: what was published, and how far from it we may be. No figure: our own row."""

    title: str
    published: str = ""
    mean: float | None = None
    tolerance: float = 0.015


ROWS = {
    "pooled": Row("pooled, trained on rows standardised together", "0.735 ± 0.002", 0.735),
    "pooled_per_centre": Row("pooled, standardised per centre"),
    "pooled_torch_adam": Row("  the same, PyTorch's Adam, bare loop"),
    "local": Row("local, own centre", "0.730", 0.730),
    "local_torch_adam": Row("  the same, PyTorch's Adam, bare loop", "0.730", 0.730),
    "fedavg": Row("FedAvg, lr 0.001", "0.685 ± 0.025", 0.685, 0.025),
    "fedavg_higher_lr": Row("FedAvg, lr 0.00316", "0.718", 0.718, 0.025),
    "fedavg_fine_tuned": Row("FedAvg, lr 0.001, fine-tuned"),
    "fedavg_higher_lr_fine_tuned": Row("FedAvg, lr 0.00316, fine-tuned", "0.735 ± 0.008", 0.735),
    "reptile": Row("uniform Reptile, lr 0.00316"),
    "reptile_fine_tuned": Row("uniform Reptile, lr 0.00316, fine-tuned"),
}


def write_hospitals(table: Path, parent: Path) -> tuple[list[Path], Path]:
    """Return the folders of one table hospital per centre, and of one that holds all rows in one table."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sites = sorted({row["site"] for row in rows})
    for site in sites:
        write_hospital(parent / site, [row for row in rows if row["site"] == site])
    write_hospital(parent / "together", rows)
    return [parent / site for site in sites], parent / "together"


def write_hospital(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write table.csv and schema.toml; every row carries FLamby's train or test."""
    features = [name for name in rows[0] if name not in NOT_FEATURES]
    folder.mkdir()
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*features, "set", "disease"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    schema = f'label = "disease"\nsplit = "set"\nnumeric = {json.dumps(features)}\n'
    (folder / "schema.toml").write_text(schema)


def config_of(seed: int, *more: str) -> Config:
    """Return the protocol's configuration with `key=value` overrides."""
    fixed = ["model.name=linear", "task.label=disease", 'task.classes=["0", "1"]']
    return configuration.load(None, [f"seed={seed}", *fixed, f"training.batch-size={BATCH}", *more])


class Trial:
    """All rows of the table for one seed: each method returns one accuracy per centre."""

    def __init__(self, seed: int, folders: list[Path]) -> None:
        self.seed = seed
        self.folders = folders
        config = config_of(seed)
        self.hospitals = [open_hospital(folder, config.data, config.task) for folder in folders]
        shape = tuple(self.hospitals[0].adaptation.inputs.shape[1:])
        self.learner = learner_for(config, shape, torch.device("cpu"))
        self.initial = initial_weights(config, shape)

    def pooled(self, folders: list[Path]) -> Weights:
        """Return phi of a federation of one node that holds all of `folders`, in one round of Adam."""
        cases = sum(len(hospital.adaptation) for hospital in self.hospitals)
        steps = EPOCHS * math.ceil(cases / BATCH)
        settings = ["inner-optimizer=adam", f"inner-lr={ADAM_LR}", f"inner-steps={steps}", "rounds=1"]
        return self._meta_train("pooled", settings, {"all": "\n".join(map(str, folders))})

    def federated(self, algorithm: str, lr: float) -> Weights:
        """Return phi after 15 rounds of 100 SGD steps at each of the four centres."""
        settings = ["inner-optimizer=sgd", f"inner-lr={lr}", f"inner-steps={STEPS}", f"rounds={ROUNDS}"]
        return self._meta_train(algorithm, settings, {folder.name: str(folder) for folder in self.folders})

    def local(self) -> list[float]:
        """Return the accuracy of a model of each centre's own."""
        adam = [
            InnerLoop(EPOCHS * math.ceil(len(hospital.adaptation) / BATCH), ADAM_LR, "adam", BATCH)
            for hospital in self.hospitals
        ]
        return [self._adapted(self.initial, *pair) for pair in zip(self.hospitals, adam, strict=True)]

    def fine_tuned(self, phi: Weights, lr: float) -> list[float]:
        """Return the accuracy of phi after 100 more SGD steps at each centre."""
        recipe = InnerLoop(STEPS, lr, "sgd", BATCH)
        return [self._adapted(phi, hospital, recipe) for hospital in self.hospitals]

    def pooled_torch_adam(self) -> list[float]:
        """Return the accuracy of pooled training in a bare loop with PyTorch's Adam as it comes."""
        phi = self._torch_adam(concatenate([hospital.adaptation for hospital in self.hospitals]))
        return self.judge(phi)

    def local_torch_adam(self) -> list[float]:
        """Return the accuracy of each centre's own model, trained in the same bare loop."""
        return [self._accuracy(self._torch_adam(one.adaptation), one) for one in self.hospitals]

    def judge(self, phi: Weights) -> list[float]:
        """Return the accuracy of phi as it is, at each centre."""
        return [self._accuracy(phi, hospital) for hospital in self.hospitals]

    def _meta_train(self, algorithm: str, settings: list[str], sites: Mapping[str, str]) -> Weights:
        config = config_of(self.seed, *(f"training.{setting}" for setting in settings))
        nodes: list[NodeConfig] = [
            {"site": site, "hospital": folders, "device": "cpu", "threads": 1}
            for site, folders in sites.items()
        ]
        with tempfile.TemporaryDirectory() as scratch, InProcessGrid(client_app, nodes, workers=1) as grid:
            described = evaluation.describe(grid, config).all_of_them()
            initial = weights.pack(self.initial)
            phi = meta_train(grid, config, algorithm, described, initial, Path(scratch)).phi
        return weights.unpack(phi, self.initial)

    def _adapted(self, phi: Weights, hospital: Hospital, recipe: InnerLoop) -> float:
        draws = seeds.Draws.of_seed(self.seed, "adapt", hospital.name)
        predict = ALGORITHMS["fedavg"].adapt(self.learner, phi, hospital.adaptation, recipe, draws)
        return accuracy(self.learner, predict(hospital.test.inputs), hospital.test)

    def _accuracy(self, phi: Weights, hospital: Hospital) -> float:
        return accuracy(self.learner, self.learner.logits(phi, hospital.test.inputs), hospital.test)

    def _torch_adam(self, cases: Cases) -> Weights:
        self.learner.load(self.initial)
        network = self.learner.network
        optimizer = torch.optim.Adam(network.parameters(), ADAM_LR)
        steps, draws = EPOCHS * max(1, len(cases) // BATCH), seeds.Draws.of_seed(self.seed, "bare")
        for rows, _ in minibatches(cases, BATCH, steps, draws):
            optimizer.zero_grad()
            loss = self.learner.task.loss(network(cases.inputs[rows]), cases.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self.learner.weights()


def accuracy(learner: Learner, logits: torch.Tensor, cases: Cases) -> float:
    """Return the share of cases whose more probable class is theirs."""
    probability = learner.task.probabilities(logits).numpy()
    every = np.ones((1, len(cases)))
    return float(learner.task.metrics(probability, cases.labels.numpy(), every)["accuracy"][0])


def accuracies(trial: Trial, together: Path) -> dict[str, list[float]]:
    """Return for each row of the table the accuracy at each centre."""
    fedavg, higher = trial.federated("fedavg", SGD_LR), trial.federated("fedavg", HIGHER_SGD_LR)
    reptile = trial.federated("reptile", HIGHER_SGD_LR)
    return {
        "pooled": trial.judge(trial.pooled([together])),
        "pooled_per_centre": trial.judge(trial.pooled(trial.folders)),
        "pooled_torch_adam": trial.pooled_torch_adam(),
        "local": trial.local(),
        "local_torch_adam": trial.local_torch_adam(),
        "fedavg": trial.judge(fedavg),
        "fedavg_higher_lr": trial.judge(higher),
        "fedavg_fine_tuned": trial.fine_tuned(fedavg, SGD_LR),
        "fedavg_higher_lr_fine_tuned": trial.fine_tuned(higher, HIGHER_SGD_LR),
        "reptile": trial.judge(reptile),
        "reptile_fine_tuned": trial.fine_tuned(reptile, HIGHER_SGD_LR),
    }


def main() -> None:
    """Print the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds instead of 5, under 40 seconds")
    parser.add_argument("--table", type=Path, default=TABLE, help="FLamby's rows as one CSV")
    chosen = parser.parse_args()
    if not chosen.table.is_file():
        parser.exit(2, f"{chosen.table}: there is no such table. Name it with --table.\n")
    torch.set_num_threads(1)
    seed_count = 2 if chosen.quick else 5
    with tempfile.TemporaryDirectory() as scratch:
        folders, together = write_hospitals(chosen.table, Path(scratch))
        found = [accuracies(Trial(seed, folders), together) for seed in range(seed_count)]
    table = Table(title=f"Fed-Heart-Disease: accuracy, mean over four centres, {seed_count} seeds")
    for column in ("row", "published", "ours", "difference", "tolerance", "within"):
        table.add_column(column, justify="left" if column in ("row", "published") else "right")
    figures: dict[str, float] = {"seeds": seed_count}
    for name, row in ROWS.items():
        by_seed = [statistics.mean(trial[name]) for trial in found]
        mean, deviation = statistics.mean(by_seed), statistics.stdev(by_seed)
        figures |= {name: round(mean, 4), f"{name}_std": round(deviation, 4)}
        against = ("", "", "")
        if row.mean is not None:
            off = mean - row.mean
            against = (f"{off:+.3f}", f"{row.tolerance}", "yes" if abs(off) <= row.tolerance else "no")
        table.add_row(row.title, row.published, f"{mean:.3f} ± {deviation:.3f}", *against)
    Console(width=120).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
