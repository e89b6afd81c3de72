r"""Meta-learning against the papers' equations and learn2learn, on Omniglot's small sets.

Correctness: phi after one outer step of ours and of a reference in plain autograd (benchmarks/papers.py)
on the same episodes; largest difference. In float32 an inner loop magnifies rounding (ReLU and pooling
switch, Adam divides by gradients that are all but zero), so the equations are compared in float64.
Speed: processor time of one outer step on one thread at conv4-64 with batch normalisation, by turns; peak
memory in a process of its own. Accuracy: trained by ours and by the reference on the same episodes, so with
the same number of gradient steps; then adapted to the same 5-way test episodes of alphabets that were never
trained on, 15 queries a class, mean and 95 % interval over episodes. `transductive`: statistics of the batch
of queries; else of the support alone.

learn2learn is compared where it can be imported; it is no dependency.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import added_memory, best_by_turns, memory_of_its_own
from omniglot import ARCHIVES, DEFAULT, SIZE, Characters, characters
from rich.console import Console
from rich.table import Table
from rivals import BASE, SETTINGS, WAY, Setting, made, rivals

from common import seeds, weights
from common.algorithms import ALGORITHMS
from common.config import load
from common.initialise import learner_of_algorithm
from common.weights import Weights
from server import outer_loop

META_LR = 0.1
"""Of the one outer step that is compared."""
SPEED: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("maml", 28, ()),
    ("fomaml", 28, ()),
    ("reptile", 28, ()),
    ("maml", 84, ()),
    ("maml", 84, ("checkpoint=true",)),
)
"""Algorithm, image size and further settings of [training] of each measurement."""


def equality(algorithm: str, data: Characters, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest difference of phi after one outer step in `dtype`, from ours to each rival."""
    plain = algorithm in ("maml", "fomaml")
    longer = ("inner-steps=5", "inner-lr=0.05") if plain else ()
    setting, phis = SETTINGS[algorithm], {}
    config = setting.config(*longer)
    for maker in rivals(algorithm):
        step, phi = made(maker, algorithm, config, dtype=dtype)
        sampled = setting.sample(data.to(dtype), seeds.generator(0, "equal"))[:2]
        delta = step(phi, sampled, seeds.Draws.of_seed(0, "inner"))
        phis[maker] = weights.pack(weights.add(phi, delta, scale=META_LR if plain else 1.0))
    return {maker: float((phi - phis["ours"]).abs().max()) for maker, phi in phis.items() if maker != "ours"}


def timed(
    makers: Sequence[str], algorithm: str, size: int, over: Sequence[str], turns: int
) -> dict[str, float]:
    """Return each maker's best outer step in milliseconds, the makers taking turns."""
    return best_by_turns({maker: _prepared(maker, algorithm, size, over) for maker in makers}, turns)


def memory(maker: str, algorithm: str, size: int, over: Sequence[str]) -> float:
    """Return what three outer steps add to the peak memory of a process of their own, in MiB."""
    return memory_of_its_own(__file__, [maker, algorithm, size, list(over)])


def _prepared(maker: str, algorithm: str, size: int, over: Sequence[str]) -> Callable[[], Weights]:
    """Return one outer step on one episode, 5-way 1-shot with 15 queries and 5 inner steps."""
    keys = ("inner-lr=0.01", "inner-steps=5", "batch-size=0", *over)
    config = load(None, [*BASE, *(f"training.{key}" for key in keys)])
    step, phi = made(maker, algorithm, config, size)
    chance = seeds.generator(0)
    sampled = [Characters(torch.rand(WAY, 20, 1, size, size, generator=chance)).episode(WAY, 1, 15, chance)]
    return lambda: step(phi, sampled, seeds.Draws.of_seed(0))


def trained(maker: str, algorithm: str, setting: Setting, data: Characters) -> Weights:
    """Return phi after all outer steps, by the coordinator's own outer loop."""
    config = setting.config()
    training = config.training_of(algorithm)
    step, phi = made(maker, algorithm, config)
    state = outer_loop.init(weights.pack(phi))
    for number in range(training.rounds):
        sampled = setting.sample(data, seeds.generator(0, "train", number))
        here = weights.unpack(state.phi, phi)
        delta = weights.pack(step(here, sampled, seeds.Draws.of_seed(0, "inner", number)))
        state, _ = outer_loop.apply(state, delta.double(), training.outer, training.rounds)
    return weights.unpack(state.phi, phi)


def accuracies(
    algorithm: str, phi: Weights, setting: Setting, data: Characters, shot: int, episodes: int
) -> dict[str, list[float]]:
    """Return the accuracy on each test episode, with and without the query batch's statistics."""
    learner = learner_of_algorithm(setting.config(), algorithm, (1, SIZE, SIZE), torch.device("cpu"))
    found: dict[str, list[float]] = {"transductive": [], "not": []}
    for number in range(episodes):
        episode = data.episode(WAY, shot, 15, seeds.generator(0, "test", shot, number))
        alone = learner.calibrated(phi, episode.support.inputs)
        for mode, used in (("transductive", learner), ("not", alone)):
            chance = seeds.Draws.of_seed(0, "adapt", number)
            predict = ALGORITHMS[algorithm].adapt(used, phi, episode.support, setting.recipe, chance)
            right = predict(episode.query.inputs).argmax(1) == episode.query.labels
            found[mode].append(float(right.double().mean()))
    return found


def told(values: Sequence[float]) -> str:
    """Return mean and half the 95 % interval over episodes, in percent."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{100 * np.mean(values):.1f} ± {100 * half:.1f}"


def show_equality(console: Console, data: Characters, figures: dict[str, float]) -> None:
    """Print the differences after one outer step, in both precisions."""
    title = "phi after one outer step on the same episodes: largest difference"
    table = Table("algorithm", "ours against", "float64", "float32", title=title)
    for algorithm in SETTINGS:
        exact, rounded = (equality(algorithm, data, dtype) for dtype in (torch.float64, torch.float32))
        for maker, apart in exact.items():
            table.add_row(algorithm, maker, f"{apart:.1e}", f"{rounded[maker]:.1e}")
            figures[f"{algorithm}_{maker}_difference"] = apart
    console.print(table)


def show_speed(console: Console, turns: int, figures: dict[str, float]) -> None:
    """Print processor time and memory of one outer step."""
    title = "conv4-64, one thread: outer steps of one episode per second of processor time"
    table = Table("algorithm", "image", "by", "steps/s", "time / ours", "peak MiB", title=title)
    for algorithm, size, over in SPEED:
        makers = ["ours"] if over else rivals(algorithm)
        best = timed(makers, algorithm, size, over, max(2, turns * 28 // size))
        for maker, milliseconds in best.items():
            ratio, name = milliseconds / best["ours"], f"{algorithm} {' '.join(over)}".strip()
            mib = memory(maker, algorithm, size, over)
            table.add_row(name, str(size), maker, f"{1000 / milliseconds:.2f}", f"{ratio:.2f}", f"{mib:.0f}")
            key = f"{name}_{size}_{maker}"
            figures |= {f"{key}_ratio": round(ratio, 3), f"{key}_mib": round(mib)}
    console.print(table)


def show_accuracy(
    console: Console, sides: tuple[Characters, Characters], share: float, hands: Sequence[str], test: int
) -> None:
    """Print accuracies after the same number of gradient steps."""
    table = Table(
        "algorithm", "by", "outer steps", "shot", "transductive", "not", "minutes", title="5-way accuracy"
    )
    for algorithm, whole in SETTINGS.items():
        setting = replace(whole, outer_steps=max(1, round(whole.outer_steps * share)))
        for maker in rivals(algorithm):
            if maker not in hands:
                continue
            begun = time.perf_counter()
            phi = trained(maker, algorithm, setting, sides[0].with_rotations())
            minutes = (time.perf_counter() - begun) / 60
            for shot in (1, 5):
                found = accuracies(algorithm, phi, setting, sides[1], shot, test)
                row = (str(setting.outer_steps), str(shot), told(found["transductive"]), told(found["not"]))
                table.add_row(algorithm, maker, *row, f"{minutes:.1f}")
                print(json.dumps([algorithm, maker, *row, round(minutes, 1)]), flush=True)
    console.print(table)


def main() -> None:
    """Print the tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a fortieth of the training, under three minutes"
    )
    parser.add_argument("--omniglot", type=Path, default=DEFAULT, help="folder with the two archives")
    parser.add_argument("--share", type=float, default=1.0, help="of each algorithm's outer steps")
    parser.add_argument("--by", nargs="+", default=["ours", "paper", "learn2learn"], help="whose training")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), help="algorithms")
    parser.add_argument("--set", nargs="+", default=[], help="keys of [training] on top")
    parser.add_argument("--parts", nargs="+", default=["equality", "speed", "accuracy"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.measure:
        print(added_memory(_prepared(*json.loads(chosen.measure)), 3))
        return
    if not (chosen.omniglot / ARCHIVES[0]).is_file():
        parser.exit(2, f"{chosen.omniglot}: there is no Omniglot. Name its folder with --omniglot.\n")
    for name, setting in list(SETTINGS.items()):
        if name in chosen.only:
            SETTINGS[name] = replace(setting, over=(*setting.over, *chosen.set))
        else:
            del SETTINGS[name]
    console, figures = Console(width=120), dict[str, float]()
    sides = characters(chosen.omniglot)
    if "equality" in chosen.parts:
        show_equality(console, sides[0], figures)
    if "speed" in chosen.parts:
        show_speed(console, 8 if chosen.quick else 40, figures)
    if "accuracy" in chosen.parts:
        share, test = (chosen.share / 40, 50) if chosen.quick else (chosen.share, 300)
        show_accuracy(console, sides, share, chosen.by, test)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
