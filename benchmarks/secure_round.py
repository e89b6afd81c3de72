"""What secure aggregation costs in a round: ten hospitals, conv4 of width 64, with and without.

    python benchmarks/secure_round.py [--quick]

Both run in this process, one message at a time, so that every second is somebody's computing: `plain` a
round of deltas, `secure` one of masked vectors, shares and signatures, their log written to disk with
every message. The first round, which exchanges keys and deals, is shown apart. Wall-clock seconds, medians
over the rounds that follow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.app import app as client_app
from client.site import NodeConfig
from common import weights
from common.config import load
from common.initialise import shared_weights
from server import evaluation
from server.app import common_input_shape, meta_train
from simulation.grid import InProcessGrid
from simulation.phantoms import write_hospitals
from simulation.secrets import make_secrets

HOSPITALS = 10


def main() -> None:
    """Run both trainings and print their rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 4 if parser.parse_args().quick else 12
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), rounds)
    table = Table(title=f"{HOSPITALS} hospitals, {figures['parameters']:,} parameters, seconds a round")
    for column in ("", "first round", "later rounds", "more than plain", "a site and round"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("plain", "secure"):
        one = figures[name]
        more = "" if name == "plain" else f"{figures['more_s']:.3f}"
        each = "" if name == "plain" else f"{1000 * figures['more_s'] / HOSPITALS:.1f} ms"
        table.add_row(name, f"{one['first_s']:.3f}", f"{one['round_s']:.3f}", more, each)
    Console().print(table)
    print(json.dumps(figures))


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds of a round, plain and secure."""
    config = load(
        None,
        [
            f"training.rounds={rounds}",
            "training.inner-steps=2",
            "model.width=64",
            "data.image-size=32",
            f"phantoms.sites={HOSPITALS}",
            "phantoms.patients=16",
        ],
    )
    written = write_hospitals(
        folder / "hospitals", config.phantoms, seed=0, classes=config.task.classes, progress=lambda *_: None
    )
    keys = make_secrets(folder / "secrets", [one.name for one in written])
    nodes: list[NodeConfig] = [
        {
            "site": one.name,
            "hospital": str(one),
            "threads": 1,
            "device": "cpu",
            "secrets": str(folder / "secrets" / one.name),
        }
        for one in written
    ]
    figures: dict[str, Any] = {}
    for name, identities in (("plain", None), ("secure", keys)):
        with InProcessGrid(client_app, nodes, workers=1) as grid:
            sites = evaluation.describe(grid, config).all_of_them()
            like = shared_weights(config, "reptile", common_input_shape(sites.values()))
            initial = weights.pack(like)
            where = folder / name
            end = meta_train(grid, config, "reptile", sites, initial, where, identities=identities)
        seconds = [float(one["seconds"]) for one in end.history]
        figures[name] = {"first_s": seconds[0], "round_s": statistics.median(seconds[1:])}
        figures["parameters"] = len(initial)
    figures["more_s"] = figures["secure"]["round_s"] - figures["plain"]["round_s"]
    figures["ratio"] = figures["secure"]["round_s"] / figures["plain"]["round_s"]
    return figures


if __name__ == "__main__":
    main()
