"""Every example and algorithm against a new hospital's policy: taken part in, or refused by which key.

    python benchmarks/policy_table.py

The hospital is a notional one with 40 patients of every class and 400 at least: whether a real one has enough
is another matter.
"""

from __future__ import annotations

from pathlib import Path

import torch

from client.classes import Lesson, strata
from client.floors import check_lesson
from client.policy import check, starting
from common import heads
from common.algorithms import ALGORITHMS
from common.cases import Cases
from common.config import Config, load
from common.errors import DataError, PolicyError, ZamenisError
from common.wire import Instruction
from simulation.cli import DEMO

EACH, LEAST = 40, 400
"""Patients of every class, and altogether at the least."""
EXAMPLES = (DEMO, *sorted((Path(__file__).parents[1] / "examples").glob("*.toml")))


def lesson_of(config: Config) -> Lesson:
    """Return what the notional hospital trains on."""
    classes = heads.seen(config)
    patients = torch.arange(max(LEAST, EACH * len(classes)))
    labels = patients % len(classes) if config.kind.by_class else torch.zeros(len(patients))
    return Lesson(Cases(torch.zeros(len(patients), 1), labels, patients), classes, strata(classes, config))


def verdict(example: Path, algorithm: str) -> str:
    """Return the key that refuses an example's training by this algorithm, or why there is none."""
    try:
        config = load(example, [f'experiment.algorithms=["{algorithm}"]'])
    except ZamenisError:
        return "does not go with it"
    policy = starting()
    try:
        instruction = Instruction(config=config.to_json(), algorithm=algorithm)
        check(policy, "train", instruction, config, 0)
        if ALGORITHMS[algorithm].local_update:
            check_lesson(policy, lesson_of(config), config.training_of(algorithm), ALGORITHMS[algorithm])
    except PolicyError as error:
        return f"`{error.key}`"
    except DataError:
        return "too few of a class"
    return "yes"


def main() -> None:
    """Print the table as Markdown."""
    print(f"| example | {' | '.join(ALGORITHMS)} |\n|---|{'---|' * len(ALGORITHMS)}")
    for example in EXAMPLES:
        print(f"| {example.stem} | {' | '.join(verdict(example, name) for name in ALGORITHMS)} |")


if __name__ == "__main__":
    main()
