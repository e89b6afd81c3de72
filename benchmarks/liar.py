"""What one lying hospital does to a secure training, unnamed: how far it shifts the mean, and the end.

    python benchmarks/liar.py [--quick]

FOMAML on phantoms, at 8 and 12 hospitals. `fixed` is clip-norm alone and the mean of all, `follows` the clip
that follows the updates, `groups` that and the median of fixed groups. The liar adds to its masked vector,
along one direction over all coordinates: its own share (clip / n of the mean), or most of what the check of
its sum's length allows; or that, and one bit fewer within the clip each round. `delta` is the length of the
last round's mean, `away` how far phi ends from where it ends without a liar, in lengths of the way from its
beginning to there (`most`: of all seeds), `lost` rounds without a mean; means over seeds. `median` is how far
groups themselves end from `follows`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from client.app import app as client_app
from client.site import NodeConfig
from common import weights
from common.config import Config, load
from common.initialise import shared_weights
from common.secagg.layout import Layout
from server import evaluation
from server.app import MetaTrained, common_input_shape, meta_train
from simulation.attack.liar import LyingGrid, shifted
from simulation.phantoms import write_hospitals
from simulation.secrets import make_secrets

SIZES = (8, 12)
LIES = {
    "none": (0.0, 0.0, 0),
    "its own share": (1.0, 0.0, 0),
    "the check": (0.0, 0.4, 0),
    "and bits": (0.0, 0.4, -1),
}
"""Clips that are added to the sum, in all and for each hospital in it, and bits."""
WAYS = {
    "fixed": ["training.clip-quantile=0.0"],
    "follows": [],
    "groups": ["training.aggregation=median"],
}


def main() -> None:
    """Train with every lie and print what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer of everything: 10 minutes")
    quick = parser.parse_args().quick
    table = Table(title="one liar, FOMAML")
    for column in ("hospitals", "way", "lie", "clip", "delta", "away", "most", "lost"):
        table.add_column(column, justify="right")
    for size in SIZES:
        pairs = list(itertools.product(WAYS, LIES))
        if quick:
            pairs = [(way, lie) for way, lie in pairs if way != "fixed" and lie != "its own share"]
        runs = [seeded(seed, size, 6 if quick else 20, pairs) for seed in range(2 if quick else 3)]
        for way, lie in (*pairs, ("groups", "median")):
            found = np.array([run[way, lie] for run in runs])
            clip, delta, away, lost = found.mean(axis=0)
            row = (f"{clip:.2f}", f"{delta:.2f}", f"{away:.2f}", f"{found[:, 2].max():.2f}", f"{lost:.1f}")
            table.add_row(str(size), way, lie, *row)
    Console().print(table)


def seeded(
    seed: int, size: int, rounds: int, pairs: list[tuple[str, str]]
) -> dict[tuple[str, str], list[float]]:
    """Return, by way and lie, what `told` says."""
    with tempfile.TemporaryDirectory() as folder:
        ends = {
            (way, lie): train(Path(folder), settings(seed, size, rounds, way), way, lie) for way, lie in pairs
        }
    found = {(way, lie): told(ends[way, lie], ends[way, "none"]) for way, lie in ends}
    found["groups", "median"] = told(ends["groups", "none"], ends["follows", "none"])
    return found


def told(end: tuple[torch.Tensor, MetaTrained], honest: tuple[torch.Tensor, MetaTrained]) -> list[float]:
    """Return the last clip, the last mean's length, how far phi ends from an honest one, and rounds lost."""
    start, goal = honest[0], honest[1].phi
    away = float(torch.linalg.vector_norm(end[1].phi - goal) / torch.linalg.vector_norm(goal - start))
    heard: list[Any] = [one for one in end[1].history if "delta-norm" in one]
    return [heard[-1]["clip"], heard[-1]["delta-norm"], away, len(end[1].history) - len(heard)]


def settings(seed: int, size: int, rounds: int, way: str) -> Config:
    """Return a small secure training."""
    return load(
        None,
        [
            f"seed={seed}",
            f"training.rounds={rounds}",
            "training.min-cohort=3",
            "data.image-size=16",
            "model.width=8",
            f"phantoms.sites={size}",
            "phantoms.patients=40",
            "phantoms.matrix=32",
            'experiment.algorithms=["fomaml"]',
            *WAYS[way],
        ],
    )


def train(folder: Path, config: Config, way: str, lie: str) -> tuple[torch.Tensor, MetaTrained]:
    """Return where a training begins and how it ends with this lie in every round."""
    if not (folder / "hospitals").exists():
        write_hospitals(folder / "hospitals", config.phantoms, seed=config.seed, classes=config.task.classes)
    homes = sorted(path for path in (folder / "hospitals").iterdir() if path.is_dir())
    keys = make_secrets(folder / "secrets", [home.name for home in homes])
    nodes: list[NodeConfig] = [
        {
            "site": home.name,
            "hospital": str(home),
            "threads": 1,
            "secrets": str(folder / "secrets" / home.name),
        }
        for home in homes
    ]
    alone, each, bits = LIES[lie]

    def push(layout: Layout, vector: bytes) -> bytes:
        signs = np.random.default_rng(1).choice([-1.0, 1.0], layout.parameters) / layout.parameters**0.5
        clips = alone + each * layout.sites
        return shifted(layout, vector, clips * layout.clip_norm * signs, {"within": bits})

    with LyingGrid(client_app, nodes, homes[0].name, push) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = weights.pack(shared_weights(config, "fomaml", common_input_shape(sites.values())))
        place = folder / f"{way} {lie}"
        return initial, meta_train(grid, config, "fomaml", sites, initial, place, identities=keys)


if __name__ == "__main__":
    main()
