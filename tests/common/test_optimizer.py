"""What outlives an inner loop: nothing, or Adam's second moment at the site whose gradients it is made of."""

from __future__ import annotations

import pytest
import torch

from common.algorithms import ALGORITHMS
from common.algorithms.algorithm import longest_coordinate
from common.cases import Cases, Episode
from common.config import load
from common.errors import ConfigError
from common.initialise import learner_of_algorithm
from common.learner import Learner
from common.optimizer import Memory, optimizer_of
from common.seeds import Draws
from common.weights import Weights

SETTINGS = ("model.name=mlp", "model.width=4", "training.inner-optimizer=adam-kept")
KEPT = load(None, SETTINGS)
LR = 0.01


def gradients(seed: int) -> list[torch.Tensor]:
    """Return six steps' gradients of one parameter."""
    return list(torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def descended(found: list[torch.Tensor], name: str, memory: Memory) -> torch.Tensor:
    """Return where a parameter ends that began at 0 and got these gradients."""
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_of({"weight": parameter}, name, LR, memory)
    for gradient in found:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_kept_adam_is_one_adam_by_its_equations() -> None:
    """The second task's weights begin anew; steps and second moment are those of all twelve gradients."""
    memory: Memory = {}
    descended(gradients(1), "adam-kept", memory)
    second = descended(gradients(2), "adam-kept", memory)
    moment, here = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for number, gradient in enumerate(gradients(1) + gradients(2), start=1):
        moment = 0.999 * moment + 0.001 * gradient**2
        if number > 6:
            here = here - LR * gradient / ((moment / (1 - 0.999**number)).sqrt() + 1e-8)
    torch.testing.assert_close(second, here, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(memory["weight.second-moment"], moment)
    assert memory["weight.steps"] == 12


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_others_remember_nothing(name: str) -> None:
    """Their second task ends as it would have alone, and the memory stays empty."""
    memory: Memory = {}
    descended(gradients(1), name, memory)
    assert torch.equal(descended(gradients(2), name, memory), descended(gradients(2), name, {}))
    assert memory == {}


def test_a_parameter_of_another_shape_begins_afresh() -> None:
    """A hospital whose classes have changed has another head; the rest goes on."""
    memory: Memory = {"weight.second-moment": torch.ones(7), "weight.steps": torch.tensor(50.0)}
    memory |= {"other.second-moment": torch.ones(2), "other.steps": torch.tensor(50.0)}
    assert torch.equal(descended(gradients(1), "adam-kept", memory), descended(gradients(1), "adam-kept", {}))
    assert memory["other.steps"] == 50


def learner_and_task(algorithm: str) -> tuple[Learner, Weights, Episode]:
    """Return a small network, where it begins, and an episode."""
    learner = learner_of_algorithm(KEPT, algorithm, (2,), torch.device("cpu"))
    inputs = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    cases = Cases(inputs, (inputs[:, 0] > 0).long(), torch.arange(12))
    return learner, learner.weights(), Episode(cases, cases)


@pytest.mark.parametrize("algorithm", ["reptile", "fedavg", "fomaml", "protonet"])
def test_a_site_goes_on_from_what_it_remembers(algorithm: str) -> None:
    """Two episodes in one round leave the memory that two rounds leave whose phi did not move."""
    learner, phi, task = learner_and_task(algorithm)
    config = load(None, [*SETTINGS, 'algorithms.fomaml.inner-optimizer="adam-kept"'])
    update, training = ALGORITHMS[algorithm].local_update, config.training_of(algorithm)
    assert update is not None
    memory: Memory = {}
    first = update(learner, phi, [task], training, Draws.of_seed(0), memory).delta
    steps = dict(memory)["backbone.0.weight.steps"].item()
    second = update(learner, phi, [task], training, Draws.of_seed(0), memory).delta
    assert memory["backbone.0.weight.steps"] == 2 * steps > 0
    assert not torch.equal(first["backbone.0.weight"], second["backbone.0.weight"])
    again = update(learner, phi, [task], training, Draws.of_seed(0), {}).delta
    assert torch.equal(again["backbone.0.weight"], first["backbone.0.weight"])


def test_what_differentiates_its_inner_loop_has_no_adam() -> None:
    """MAML and ANIL step by plain SGD whatever [training] says; to ask them for another is refused."""
    assert {KEPT.training_of(name).inner_optimizer for name in ("maml", "anil")} == {"sgd"}
    for settings in ("maml={{{}}}", "anil={{{}}}", "anil={{first-order=true,{}}}"):
        with pytest.raises(ConfigError, match="inner-optimizer sgd"):
            load(None, ["algorithms." + settings.format('inner-optimizer="adam-kept"')])


def test_kept_steps_have_no_bound_that_counts_from_the_first() -> None:
    """A step of a fresh Adam is bounded by how many there were; one that goes on is not."""
    one = load(None, ["training.inner-steps=1"]).training_of("reptile")
    kept = load(None, ["training.inner-steps=1", "training.inner-optimizer=adam-kept"])
    assert longest_coordinate(one) == pytest.approx(0.001)
    assert longest_coordinate(kept.training_of("reptile")) == pytest.approx(0.004)
