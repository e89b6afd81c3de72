"""What one lying hospital of six does to a secure training, unnamed: how far it shifts the mean, and the end.

    python benchmarks/liar.py [--quick]

FOMAML on phantoms. `fixed` is clip-norm alone, `follows` the clip that follows the updates. The liar adds to
its masked vector along one coordinate: its own share (clip / n of the mean), or most of what the check of the
sum's length allows; or that, and one bit fewer within the clip each round. `delta` is the length of the last
round's mean, `away` how far phi ends from where it ends without a liar, in lengths of the honest way; means
over seeds.
"""

from __future__ import annotations

import argparse
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
from common.config import load
from common.initialise import shared_weights
from common.secagg.layout import Layout
from server import evaluation
from server.app import MetaTrained, common_input_shape, meta_train
from simulation.attack.liar import LyingGrid, shifted
from simulation.phantoms import write_hospitals
from simulation.secrets import make_secrets

HOSPITALS = 6
LIES = {"none": (0.0, 0), "its own share": (1.0, 0), "the check": (0.4 * HOSPITALS, 0), "and bits": (2.4, -1)}
"""Clips that are added to the sum, and bits."""


def main() -> None:
    """Train with every lie and print what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and seeds")
    quick = parser.parse_args().quick
    table = Table(title=f"one liar of {HOSPITALS}, FOMAML")
    for column in ("clip", "lie", "last clip", "delta", "away", "rounds lost"):
        table.add_column(column, justify="right")
    for clip, quantile in (("fixed", 0.0), ("follows", 0.5)):
        runs = [seeded(seed, quantile, 6 if quick else 20) for seed in range(1 if quick else 3)]
        for lie in LIES:
            figures = np.mean([run[lie] for run in runs], axis=0)
            table.add_row(clip, lie, *(f"{value:.3f}" for value in figures))
    Console().print(table)


def seeded(seed: int, quantile: float, rounds: int) -> dict[str, list[float]]:
    """Return, per lie, the last clip, the last mean's length, how far phi ends away, and rounds lost."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ends = {lie: train(Path(folder), seed, quantile, rounds, lie) for lie in LIES}
    start, honest = ends["none"]
    way = float(torch.linalg.vector_norm(honest.phi - start))
    for lie, (_, end) in ends.items():
        away = float(torch.linalg.vector_norm(end.phi - honest.phi)) / way
        heard: list[Any] = [one for one in end.history if "clip" in one]
        found[lie] = [heard[-1]["clip"], heard[-1]["delta-norm"], away, len(end.history) - len(heard)]
    return found


def train(
    folder: Path, seed: int, quantile: float, rounds: int, lie: str
) -> tuple[torch.Tensor, MetaTrained]:
    """Return where a training begins and how it ends with this lie in every round."""
    config = load(
        None,
        [
            f"seed={seed}",
            f"training.rounds={rounds}",
            f"training.clip-quantile={quantile}",
            "training.min-cohort=3",
            "data.image-size=16",
            "model.width=8",
            f"phantoms.sites={HOSPITALS}",
            "phantoms.patients=40",
            "phantoms.matrix=32",
            'experiment.algorithms=["fomaml"]',
        ],
    )
    if not (folder / "hospitals").exists():
        write_hospitals(folder / "hospitals", config.phantoms, seed=seed, classes=config.task.classes)
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
    clips, bits = LIES[lie]

    def push(layout: Layout, vector: bytes) -> bytes:
        shift = np.zeros(layout.parameters)
        shift[0] = clips * min(layout.clip_norm, layout.coordinate_range)
        return shifted(layout, vector, shift, {"within": bits})

    with LyingGrid(client_app, nodes, homes[0].name, push) as grid:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = weights.pack(shared_weights(config, "fomaml", common_input_shape(sites.values())))
        place = folder / f"{quantile} {lie}"
        return initial, meta_train(grid, config, "fomaml", sites, initial, place, identities=keys)


if __name__ == "__main__":
    main()
