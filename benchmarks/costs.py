"""What an algorithm and a network cost a hospital in a round: bytes, processor time, memory.

    python benchmarks/costs.py [--quick]

Algorithms with conv4-32, networks with Reptile, at 64x64 on one thread. Everybody gets the same two episodes
of random images: two classes, 5 patients of each in the support and 10 in the query, 5 inner steps on the
whole support. FedBN has batch normalisation; U-Net gets masks for labels. Processor time is the best of
several rounds, all of a table taking turns in one process; memory is what a round adds to the peak of a
process of its own, over its size once the network is built (Linux). Bytes down and plain bytes up are
float32; masked ones are a vector of 16-bit values summed over ten hospitals, without the dealing
(`benchmarks/secagg.py`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from measure import added_memory, best_by_turns, memory_of_its_own
from rich.console import Console
from rich.table import Table

from common import seeds, weights
from common.algorithms import ALGORITHMS
from common.bounds import layout_of
from common.cases import Cases, Episode
from common.config import Config, load
from common.initialise import learner_of_algorithm, shared_weights

SIZE, SHOT, QUERY, EPISODES = 64, 5, 10, 2
HOLDERS = 10
"""Hospitals in a sum of masked vectors."""
SHAPE = (1, SIZE, SIZE)
BASE = (
    "model.width=32",
    f"training.shot={SHOT}",
    f"training.query={QUERY}",
    f"training.episodes={EPISODES}",
    "training.inner-steps=5",
    "training.batch-size=0",
)


@dataclass(frozen=True)
class Subject:
    """What is measured: an algorithm, and settings over the common ones."""

    algorithm: str
    over: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return load(None, [*BASE, *self.over])

    def bytes_of_round(self) -> dict[str, int]:
        """Return the parameters that cross, and bytes plain and masked."""
        config = self.config
        count = len(weights.pack(shared_weights(config, self.algorithm, SHAPE)))
        layout = layout_of(config.training_of(self.algorithm), config.secure_aggregation.bits, count, HOLDERS)
        return {"parameters": count, "plain": 4 * count, "masked": layout.packed_bytes}

    def round(self) -> Callable[[], object]:
        """Return a site's half of a round."""
        config, update = self.config, ALGORITHMS[self.algorithm].local_update
        assert update is not None
        learner = learner_of_algorithm(config, self.algorithm, SHAPE, torch.device("cpu"))
        tasks = [_episode(maps=config.kind.maps) for _ in range(EPISODES)]
        training, phi = config.training_of(self.algorithm), learner.initial
        return lambda: update(learner, phi, tasks, training, seeds.Draws.of_seed(0), {})


def algorithms() -> dict[str, Subject]:
    """Return every algorithm that trains at a site, Reptile first."""
    special = {"fedbn": ("model.norm=batch",)}
    federated = (name for name, one in ALGORITHMS.items() if one.local_update and not one.pooled)
    return {name: Subject(name, special.get(name, ())) for name in federated} | {
        "maml, checkpoint": Subject("maml", ("training.checkpoint=true",)),
    }


def networks() -> dict[str, Subject]:
    """Return every network of images, as Reptile trains it."""
    masks = ("task.kind=segmentation", "model.name=unet", "model.width=8")
    return {
        "conv4-32": Subject("reptile"),
        "resnet18": Subject("reptile", ("model.name=resnet18",)),
        "densenet121": Subject("reptile", ("model.name=densenet121",)),
        "unet-8": Subject("reptile", masks),
    }


def _episode(*, maps: bool) -> Episode:
    def cases(each: int) -> Cases:
        count = 2 * each
        images = torch.rand(count, *SHAPE, generator=seeds.generator(0, "images", each))
        labels = torch.arange(2).repeat_interleave(each)
        return Cases(images, (images[:, 0] > 0.5).long() if maps else labels, torch.arange(count))

    return Episode(cases(SHOT), cases(QUERY))


def timed(subjects: Mapping[str, Subject], turns: int) -> dict[str, float]:
    """Return each one's best round in milliseconds of processor time, all taking turns.

    A turn is two rounds: the first pays for whatever memory the one before it gave back.
    """
    return best_by_turns({name: subject.round() for name, subject in subjects.items()}, turns, each=2)


def memory(subject: Subject) -> float:
    """Return what two rounds add to the peak memory of a process of their own, in MiB."""
    return memory_of_its_own(__file__, [subject.algorithm, subject.over])


def show(
    console: Console, title: str, subjects: Mapping[str, Subject], turns: int
) -> dict[str, dict[str, float]]:
    """Print a table and return its figures."""
    table = Table(title=title)
    for column in ("", "parameters", "plain KiB", "masked KiB up", "steps", "ms", "/ first", "peak MiB"):
        table.add_column(column, justify="right" if column else "left")
    best, figures = timed(subjects, turns), {}
    first = next(iter(best.values()))
    for name, subject in subjects.items():
        steps = ALGORITHMS[subject.algorithm].steps(subject.config.training_of(subject.algorithm))
        sizes, ratio, mib = subject.bytes_of_round(), best[name] / first, memory(subject)
        kib = [f"{sizes[key] / 1024:,.0f}" for key in ("plain", "masked")]
        cells = (f"{best[name]:.0f}", f"{ratio:.2f}", f"{mib:.0f}")
        table.add_row(name, f"{sizes['parameters']:,}", *kib, str(steps), *cells)
        figures[name] = {**sizes, "steps": steps, "ratio": round(ratio, 3), "mib": round(mib)}
    console.print(table)
    return figures


def main() -> None:
    """Print both tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns instead of 8")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.measure:
        algorithm, over = json.loads(chosen.measure)
        print(added_memory(Subject(algorithm, tuple(over)).round(), 2))
        return
    console, turns = Console(width=110), 2 if chosen.quick else 8
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load > cores / 2:
        console.print(f"The machine is loaded: {load:.1f} processes for {cores} cores. Read the ratios.")
    told = f"two episodes at {SIZE}x{SIZE}, one thread: a hospital's round"
    figures = {
        "load": round(load, 1),
        "algorithms": show(console, f"conv4-32, {told}", algorithms(), turns),
        "networks": show(console, f"Reptile, {told}", networks(), turns),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
