"""MAML, FOMAML and ANIL against their papers' equations, written out in plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from common import weights
from common.algorithms import ALGORITHMS, Update
from common.cases import Cases, Episode
from common.config import load
from common.errors import ConfigError
from common.initialise import learner_for
from common.learner import Learner
from common.seeds import Draws
from common.weights import Weights

SMALL = ('task.classes=["a", "b", "c"]', "model.name=conv4", "model.width=4", "training.batch-size=0")
LR, STEPS = 0.1, 3
INNER = (f"training.inner-lr={LR}", f"training.inner-steps={STEPS}")


def some_cases(seed: int, shot: int = 2) -> Cases:
    """Return small images of three classes, which differ in brightness across the image."""
    labels = torch.arange(3).repeat_interleave(shot)
    chance = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), 1, 16, 16, generator=chance, dtype=torch.float64)
    images[:, 0] += labels[:, None, None] * torch.linspace(-1, 1, 16, dtype=torch.float64)
    return Cases(images, labels, torch.arange(len(labels)))


def some_episodes(count: int) -> list[Episode]:
    """Return episodes of six support and nine query images."""
    return [Episode(some_cases(2 * number), some_cases(2 * number + 1, shot=3)) for number in range(count)]


def learner() -> Learner:
    """Return a small network for three classes in float64, so that rounding hides nothing."""
    built = learner_for(load(None, SMALL), (1, 16, 16), torch.device("cpu"))
    built.network.double()
    return built


def updated(algorithm: str, episodes: Sequence[Episode], *over: str) -> tuple[Weights, Update]:
    """Return phi and the algorithm's update from it."""
    mine = learner()
    phi, update = mine.weights(), ALGORITHMS[algorithm].local_update
    assert update is not None
    training = load(None, [*SMALL, *INNER, *over]).training_of(algorithm)
    return phi, update(mine, phi, episodes, training, Draws.of_seed(0), {})


def by_the_paper(phi: Weights, episode: Episode, *, moving: str = "", second: bool = True) -> Weights:
    """Return d L_query(phi_k) / d phi by one autograd graph over everything, with no economies."""
    network = learner().network
    start = {name: value.clone().requires_grad_() for name, value in phi.items()}

    def loss(at: Weights, cases: Cases) -> Tensor:
        logits: Tensor = functional_call(network, at, (cases.inputs,))
        return torch.nn.functional.cross_entropy(logits, cases.labels)

    here = dict(start)
    for _ in range(STEPS):
        names = [name for name in here if name.startswith(moving)]
        found = torch.autograd.grad(
            loss(here, episode.support), [here[name] for name in names], create_graph=second
        )
        here |= {name: here[name] - LR * gradient for name, gradient in zip(names, found, strict=True)}
    outer = torch.autograd.grad(loss(here, episode.query), list(start.values()))
    return dict(zip(start, outer, strict=True))


def close(delta: Weights, expected: Weights) -> None:
    """Check a delta against what the paper's equation gives."""
    assert list(delta) == list(expected)
    torch.testing.assert_close(weights.pack(delta), weights.pack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("algorithm", "moving", "second"),
    [("maml", "", True), ("fomaml", "", False), ("anil", "adapter", True)],
)
def test_an_update_is_minus_the_mean_gradient_of_the_paper(algorithm: str, moving: str, second: bool) -> None:
    """Two episodes; first and second order differ by far more than the tolerance."""
    episodes = some_episodes(2)
    phi, update = updated(algorithm, episodes)
    expected = [by_the_paper(phi, episode, moving=moving, second=second) for episode in episodes]
    close(update.delta, weights.scale(weights.mean(expected), -1.0))
    assert update.episodes == 2
    other = weights.mean([by_the_paper(phi, one, moving=moving, second=not second) for one in episodes])
    apart = weights.pack(update.delta) + weights.pack(other)
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_first_order_is_an_option(algorithm: str) -> None:
    """MAML with every Hessian taken as 0 is FOMAML, and ANIL has the same option."""
    (episode,) = some_episodes(1)
    moving = "adapter" if algorithm == "anil" else ""
    phi, update = updated(algorithm, [episode], f"algorithms.{algorithm}.first-order=true")
    close(update.delta, weights.scale(by_the_paper(phi, episode, moving=moving, second=False), -1.0))


def test_maml_that_moves_the_adapter_alone_is_anil() -> None:
    """ANIL's economy, features made once, changes nothing."""
    (episode,) = some_episodes(1)
    _, whole = updated("maml", [episode], "algorithms.maml.inner-scope=adapter")
    _, once = updated("anil", [episode])
    close(once.delta, whole.delta)


def test_checkpointing_changes_memory_alone() -> None:
    """Steps computed again on the way back are the steps that were kept, up to the order of additions."""
    episodes = some_episodes(2)
    _, kept = updated("maml", episodes)
    _, again = updated("maml", episodes, "training.checkpoint=true")
    close(again.delta, kept.delta)


def test_a_large_query_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a mean over nine cases is the weighted mean over parts of four, four and one."""
    monkeypatch.setattr(import_module("common.algorithms.maml"), "PREDICTION_BATCH", 4)
    (episode,) = some_episodes(1)
    phi, update = updated("maml", [episode])
    close(update.delta, weights.scale(by_the_paper(phi, episode), -1.0))


def test_per_fedavg_takes_outer_steps_at_the_site() -> None:
    """Two local steps: phi_1 = phi - beta g(phi, first), and what is sent is -(g(phi) + g(phi_1))."""
    first, second = some_episodes(2)
    beta = 0.05
    over = ("training.meta-steps=2", "training.episodes=2", f"training.meta-step-lr={beta}")
    phi, update = updated("maml", [first, second], *over)
    at_phi = by_the_paper(phi, first)
    then = by_the_paper(weights.add(phi, at_phi, scale=-beta), second)
    close(update.delta, weights.scale(weights.add(at_phi, then), -1.0))


def test_an_inner_loop_that_cannot_be_differentiated_is_refused() -> None:
    """Second order needs plain SGD; first order takes Adam as well."""
    with pytest.raises(ConfigError, match=r"\[algorithms.maml\].*inner-optimizer sgd"):
        load(None, ["algorithms.maml.inner-optimizer=adam"])
    load(None, ["algorithms.maml.inner-optimizer=adam", "algorithms.maml.first-order=true"])
    with pytest.raises(ConfigError, match="cannot be dealt evenly over meta-steps 2"):
        load(None, ["training.episodes=3", "training.meta-steps=2"])


def test_reptile_is_the_mean_of_plain_sgd_steps() -> None:
    """Reptile of full-batch SGD, by the paper's update: phi_tilde after k steps, less phi."""
    (episode,) = some_episodes(1)
    phi, update = updated("reptile", [episode], "algorithms.reptile.inner-optimizer=sgd")
    network, here = learner().network, phi
    for _ in range(STEPS):
        leaves = {name: value.clone().requires_grad_() for name, value in here.items()}
        logits = functional_call(network, leaves, (episode.support.inputs,))
        loss = torch.nn.functional.cross_entropy(logits, episode.support.labels)
        found = torch.autograd.grad(loss, list(leaves.values()))
        here = {name: here[name] - LR * gradient for name, gradient in zip(here, found, strict=True)}
    close(update.delta, weights.subtract(here, phi))
