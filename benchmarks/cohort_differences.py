"""How well one hospital's update follows from two sums, over all hospitals and over all but it.

    python benchmarks/cohort_differences.py

A training over phantom hospitals goes on as usual. After some rounds every hospital's update is taken twice:
from the weights as they are, and from weights that have moved since, by the round's own outer step or by a
nudge that a coordinator could give them. The estimate is the first sum over all less the second over all
but one; it is compared with that one's update from the first weights. `sum alone` compares the first sum with
it instead: what a coordinator has without a second sum. Means over hospitals and seeds; rounding is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from client.app import app
from common import wire
from common.config import Config, load
from common.initialise import shared_weights
from common.weights import pack
from server import evaluation, outer_loop
from server.app import common_input_shape
from server.exchange import exchange
from simulation.grid import InProcessGrid
from simulation.phantoms import write_hospitals
from simulation.run import nodes_of

HOSPITALS, SEEDS, ROUNDS, NUDGE = 6, (0, 1, 2), (1, 5), 1e-6
SETTINGS = {
    "16 a step, 10 steps": ["training.batch-size=16", "training.inner-steps=10"],
    "all a step, 10 steps": ["training.batch-size=0", "training.inner-steps=10"],
    "all a step, 1 step": ["training.batch-size=0", "training.inner-steps=1"],
}


@dataclass(frozen=True)
class Closeness:
    """How near an estimate is to the truth."""

    cosine: float
    error: float
    """Length of the difference, relative to the truth's."""

    @classmethod
    def of(cls, estimate: torch.Tensor, truth: torch.Tensor) -> Closeness:
        """Compare two vectors."""
        cosine = torch.nn.functional.cosine_similarity(estimate, truth, dim=0)
        return cls(float(cosine), float((estimate - truth).norm() / truth.norm()))


def configuration(seed: int, *over: str) -> Config:
    """Return a small training of Reptile's."""
    return load(
        None,
        [
            f"seed={seed}",
            f"phantoms.sites={HOSPITALS}",
            "phantoms.patients=60",
            "phantoms.matrix=32",
            "data.image-size=32",
            "model.width=8",
            'experiment.algorithms=["reptile"]',
            "experiment.shots=[]",
            *over,
        ],
    )


class Training:
    """One training, whose hospitals' updates are looked at one by one."""

    def __init__(self, grid: InProcessGrid, config: Config) -> None:
        self._grid, self._config = grid, config
        sites = evaluation.describe(grid, config).all_of_them()
        self._nodes = [node for _, (node, _) in sorted(sites.items())]
        initial = pack(shared_weights(config, "reptile", common_input_shape(sites.values())))
        self.state = outer_loop.init(initial)

    def updates(self, phi: torch.Tensor, server_round: int) -> torch.Tensor:
        """Return `[hospital, parameter]`, float64."""
        told = wire.Instruction(self._config.to_json(), "reptile", server_round, run="measured")
        weights = wire.vector(phi)
        messages = [wire.instruct(node, wire.TRAIN, told, weights, seconds=600) for node in self._nodes]
        replies = dict(exchange(self._grid, messages, timeout=600))
        rows = [wire.read_contribution(replies[place], len(phi)).delta for place in range(len(messages))]
        return torch.stack(rows).double()

    def step(self, updates: torch.Tensor) -> None:
        """Take the outer step."""
        training = self._config.training_of("reptile")
        self.state, _ = outer_loop.apply(self.state, updates.mean(0), training.outer, training.rounds)


def measured(training: Training) -> Iterator[tuple[int, str, Closeness]]:
    """Yield, by round and by how the weights moved, how near each hospital's estimate is."""
    for number in range(1, max(ROUNDS) + 1):
        phi = training.state.phi
        first = training.updates(phi, number)
        training.step(first)
        if number not in ROUNDS:
            continue
        nudged = phi * (1 + NUDGE)
        for name, moved in (("one round", training.state.phi), ("a nudge", nudged)):
            second = training.updates(moved, number + 1)
            for own in range(HOSPITALS):
                estimate = first.sum(0) - (second.sum(0) - second[own])
                yield number, name, Closeness.of(estimate, first[own])
        for own in range(HOSPITALS):
            yield number, "sum alone", Closeness.of(first.mean(0), first[own])


def main() -> None:
    """Print a table."""
    print(f"{HOSPITALS} phantom hospitals, seeds {SEEDS}; cosine and relative error of one's update")
    for name, over in SETTINGS.items():
        found: dict[tuple[int, str], list[Closeness]] = {}
        for seed in SEEDS:
            config = configuration(seed, *over)
            with tempfile.TemporaryDirectory() as folder:
                hospitals = write_hospitals(
                    Path(folder), config.phantoms, seed=seed, classes=config.task.classes
                )
                with InProcessGrid(app, nodes_of(config, hospitals, []), workers=1) as grid:
                    for number, how, close in measured(Training(grid, config)):
                        found.setdefault((number, how), []).append(close)
        for (number, how), each in sorted(found.items()):
            cosine, error = mean(one.cosine for one in each), mean(one.error for one in each)
            print(f"{name:<22} round {number:>2}  {how:<10} {cosine:6.3f} {error:8.3f}", flush=True)


if __name__ == "__main__":
    main()
