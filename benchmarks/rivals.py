"""Who is compared in benchmarks/metalearning.py: settings, and one outer step by each of three hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from omniglot import SIZE, Characters
from papers import PAPERS, Adam
from torch import nn

from common.algorithms import ALGORITHMS
from common.cases import Episode
from common.config import Config, load
from common.initialise import learner_of_algorithm
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.optimizer import Memory
from common.weights import Weights

CPU = torch.device("cpu")
WAY = 5
BASE = ("model.norm=batch", "model.width=64", f"task.classes={[str(k) for k in range(WAY)]}")
Step = Callable[[Weights, Sequence[Episode], torch.Generator], Weights]
"""From phi, episodes and draws to the delta of one outer step."""


@dataclass(frozen=True)
class Setting:
    """How an algorithm trains here: its published settings where they fit a small data set."""

    over: tuple[str, ...]
    way: int
    shot: int
    query: int
    episodes: int
    """Per outer step."""
    outer_steps: int
    recipe: InnerLoop

    def config(self, *more: str) -> Config:
        """Return the run's configuration, with more keys of [training] on top."""
        keys = (*self.over, f"rounds={self.outer_steps}", *more)
        return load(None, [*BASE, *(f"training.{key}" for key in keys)])

    def sample(self, data: Characters, generator: torch.Generator) -> list[Episode]:
        """Return the episodes of one outer step."""
        return [data.episode(self.way, self.shot, self.query, generator) for _ in range(self.episodes)]


ADAM = ("inner-optimizer=adam-kept", "inner-lr=0.001")
PLAIN = ("inner-lr=0.4", "inner-steps=1", "batch-size=0")
FINE = InnerLoop(3, 0.4)
SETTINGS = {
    "reptile": Setting(
        (*ADAM, "inner-steps=5", "batch-size=10"),
        WAY,
        10,
        1,
        5,
        8000,
        InnerLoop(50, 0.001, "adam", 5),
    ),
    "fomaml": Setting(PLAIN, WAY, 1, 15, 4, 3000, FINE),
    "maml": Setting(PLAIN, WAY, 1, 15, 4, 3000, FINE),
    "protonet": Setting(ADAM, 20, 5, 5, 10, 80, FINE),
}


def ours(algorithm: str, learner: Learner, config: Config) -> Step:
    """Return what a site computes."""
    update, training = ALGORITHMS[algorithm].local_update, config.training_of(algorithm)
    assert update is not None
    memory: Memory = {}
    return lambda phi, episodes, draws: update(learner, phi, episodes, training, draws, memory).delta


def as_drawn(learner: Learner) -> nn.Module:
    """Return the network as others write it: contiguous, PyTorch's own layers, ReLU before pooling."""
    network: nn.Module = learner.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for block in network.modules():
        if isinstance(block, nn.Sequential) and isinstance(block[-1], nn.ReLU):
            own, block[2], block[3] = block[1], block[3], block[2]
            block[1] = nn.BatchNorm2d(own.num_features, eps=own.eps, track_running_stats=False)
            block[1].weight, block[1].bias = own.weight, own.bias
    return network


def by_the_paper(algorithm: str, learner: Learner, config: Config) -> Step:
    """Return the reference."""
    network, adam = as_drawn(learner), Adam()
    training, step = config.training_of(algorithm), PAPERS[algorithm]
    return lambda phi, episodes, draws: step(network, phi, episodes, training, draws, adam)


def by_learn2learn(algorithm: str, learner: Learner, config: Config) -> Step:
    """Return learn2learn's MAML, second or first order."""
    from learn2learn.algorithms import MAML

    training = config.training_of(algorithm)
    network = as_drawn(learner)
    model = MAML(network, training.inner_lr, first_order=training.first_order)

    def step(phi: Weights, episodes: Sequence[Episode], _: torch.Generator) -> Weights:
        learner.load(phi)
        model.zero_grad()
        for episode in episodes:
            task = model.clone()
            for _step in range(training.inner_steps):
                task.adapt(
                    torch.nn.functional.cross_entropy(task(episode.support.inputs), episode.support.labels)
                )
            query = torch.nn.functional.cross_entropy(task(episode.query.inputs), episode.query.labels)
            (query / len(episodes)).backward()
        return {name: -parameter.grad.clone() for name, parameter in network.named_parameters()}

    return step


MAKERS = {"ours": ours, "paper": by_the_paper, "learn2learn": by_learn2learn}


def made(
    maker: str, algorithm: str, config: Config, size: int = SIZE, dtype: torch.dtype = torch.float32
) -> tuple[Step, Weights]:
    """Return an outer step and the phi that it begins with, on a network of its own."""
    learner = learner_of_algorithm(config, algorithm, (1, size, size), CPU)
    learner.network.to(dtype)
    return MAKERS[maker](algorithm, learner, config), learner.weights()


def rivals(algorithm: str) -> list[str]:
    """Return who is there to compare with."""
    others = ["learn2learn"] if find_spec("learn2learn") and algorithm in ("maml", "fomaml") else []
    return ["ours", "paper", *others]
