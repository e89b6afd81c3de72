"""Weights made to fire for one patient: what of that patient is in a sum over hospitals at the floors.

    python benchmarks/trap.py

Three hospitals of 64 patients each with sixteen standardised columns; one full step of gradient descent of a
linear model whose weights point in a random direction, with a bias at which one patient of them all lies
beyond it and is labelled against it. The sum of the updates is compared with that patient's row.
"""

from __future__ import annotations

import statistics

import torch
from torch.nn.functional import cosine_similarity

from common import weights
from common.algorithms import ALGORITHMS
from common.cases import Cases, Episode
from common.config import load
from common.initialise import learner_for
from common.seeds import Draws

HOSPITALS, PATIENTS, COLUMNS, STEEP = 3, 64, 16, 40.0
SETTINGS = ("model.name=linear", "training.inner-optimizer=sgd", "training.inner-steps=1")


def alike(seed: int, batch_size: int) -> float:
    """Return the cosine of the summed update with the row of the patient that the weights were made for."""
    config = load(None, [*SETTINGS, f"training.batch-size={batch_size}"])
    training = config.training_of("reptile")
    learner = learner_for(config, (COLUMNS,), torch.device("cpu"))
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randn(HOSPITALS, PATIENTS, COLUMNS, generator=chance)
    direction = torch.randn(COLUMNS, generator=chance)
    direction /= direction.norm()
    top = (rows @ direction).flatten().topk(2)
    phi = dict(learner.weights())
    phi["adapter.weight"] = STEEP * direction[None]
    phi["adapter.bias"] = -STEEP * top.values.mean()[None]
    total = torch.zeros(COLUMNS)
    for place, inputs in enumerate(rows):
        cases = Cases(inputs, torch.zeros(PATIENTS, dtype=torch.int64), torch.arange(PATIENTS))
        update = ALGORITHMS["reptile"].local_update
        assert update is not None
        done = update(learner, phi, [Episode(cases, cases)], training, Draws.of_seed(seed, place), {})
        total -= weights.pack(done.delta)[:COLUMNS]
    return float(cosine_similarity(total, rows.flatten(0, 1)[top.indices[0]], dim=0))


def main() -> None:
    """Print the cosine over twenty seeds, with all patients in the step and with sixteen."""
    for batch_size, words in ((0, "all 64 patients of each"), (16, "16 patients of each")):
        found = [alike(seed, batch_size) for seed in range(20)]
        close = sum(one > 0.95 for one in found)
        print(f"{words}: median cosine {statistics.median(found):.3f}, above 0.95 in {close} of 20")


if __name__ == "__main__":
    main()
