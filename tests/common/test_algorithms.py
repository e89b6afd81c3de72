"""The inner loop and the algorithms' identities, on a logistic regression whose steps can be derived."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from common import weights
from common.algorithms import ALGORITHMS
from common.cases import Cases, Episode
from common.config import load
from common.initialise import learner_for
from common.inner_loop import InnerLoop, inner_loop, least_patients, minibatches
from common.learner import Learner
from common.seeds import Draws
from common.weighting import weight_of
from server import outer_loop
from server.aggregate import Mean

CONFIG = load(None, ["model.name=linear"])


def logistic() -> Learner:
    """Return a logistic regression on two features."""
    return learner_for(CONFIG, (2,), torch.device("cpu"))


def some_cases(seed: int, count: int = 12) -> Cases:
    """Return cases of two classes, one patient each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, generator=generator)
    return Cases(inputs, (inputs[:, 0] > 0).long(), torch.arange(count))


def test_one_sgd_step_is_the_gradient_by_hand() -> None:
    """For logistic regression the gradient is the mean of (sigmoid(wx + b) - y) x; a step is -lr times it."""
    learner, cases = logistic(), some_cases(0)
    phi = learner.weights()
    residual = (cases.inputs @ phi["adapter.weight"][0] + phi["adapter.bias"]).sigmoid() - cases.labels
    expected = phi["adapter.weight"][0] - 0.5 * (residual[:, None] * cases.inputs).mean(0)
    phi_tilde, _ = inner_loop(learner, phi, cases, InnerLoop(steps=1, lr=0.5), Draws.of_seed(0))
    torch.testing.assert_close(phi_tilde["adapter.weight"][0], expected)


def test_a_proximal_step_pulls_towards_phi() -> None:
    """The second step's gradient has mu (w1 - phi) added, so w2' = w2 - lr mu (w1 - phi)."""
    learner, cases = logistic(), some_cases(1)
    phi = learner.weights()

    def after(steps: int, mu: float) -> torch.Tensor:
        settings = InnerLoop(steps=steps, lr=0.5, proximal=mu)
        return inner_loop(learner, phi, cases, settings, Draws.of_seed(0))[0]["adapter.weight"]

    first = after(1, 0.0)
    torch.testing.assert_close(after(2, 0.3), after(2, 0.0) - 0.5 * 0.3 * (first - phi["adapter.weight"]))


def test_the_adapter_scope_leaves_the_backbone_alone() -> None:
    """Moving the adapter alone equals training it on frozen features."""
    config = load(None, ["model.name=mlp", "model.width=8"])
    learner, cases = learner_for(config, (2,), torch.device("cpu")), some_cases(2)
    phi = learner.weights()
    moved, _ = inner_loop(learner, phi, cases, InnerLoop(3, 0.1, scope="adapter"), Draws.of_seed(0))
    changed = {name for name in phi if not torch.equal(phi[name], moved[name])}
    assert changed == {"adapter.weight", "adapter.bias"}


def of_patients(patients: list[int]) -> Cases:
    """Return a case for each number, of the patient with that number."""
    count = len(patients)
    return Cases(torch.zeros(count, 1), torch.zeros(count).long(), torch.tensor(patients))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(0, 12), st.integers(1, 40))
def test_minibatches_walk_through_whole_epochs(patients: list[int], size: int, steps: int) -> None:
    """Every epoch holds every patient once, in batches cut evenly, none smaller than was asked for."""
    cases, many = of_patients(patients), len(set(patients))
    batches = list(minibatches(cases, size, steps, Draws.of_seed(3)))
    assert len(batches) == steps
    per_epoch = max(1, many // size) if size else 1
    for start in range(0, steps - per_epoch + 1, per_epoch):
        epoch = [cases.patients[batch.rows].tolist() for batch in batches[start : start + per_epoch]]
        distinct = [len(set(batch)) for batch in epoch]
        assert sum(distinct) == len({patient for batch in epoch for patient in batch}) == many
        assert min(distinct) >= least_patients(many, size)
        assert max(distinct) - min(distinct) <= 1
        assert all(len(batch) == count for batch, count in zip(epoch, distinct, strict=True) if size)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(0, 12))
def test_no_patient_of_a_batch_weighs_more_than_another(patients: list[int], size: int) -> None:
    """What a patient's images weigh together is one over the patients of the batch."""
    cases = of_patients(patients)
    for rows, shares in minibatches(cases, size, 5, Draws.of_seed(4)):
        there = cases.patients[rows]
        weight = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) if shares is None else shares
        each = torch.zeros(21, dtype=torch.float64).index_add(0, there, weight)
        torch.testing.assert_close(
            each[each > 0], 1 / torch.full_like(each[each > 0], len(set(there.tolist())))
        )


def test_an_image_of_a_patient_is_drawn_anew_every_epoch() -> None:
    """Over some epochs each of three images of a patient takes its turn."""
    cases = of_patients([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    rows = {int(row) for batch in minibatches(cases, 2, 60, Draws.of_seed(0)) for row in batch.rows}
    assert rows == set(range(12))


def one_round(algorithm: str, *settings: str) -> torch.Tensor:
    """Return phi after one round of an algorithm over three sites."""
    config = load(None, ["model.name=linear", *settings])
    training = config.training_of(algorithm)
    learner = logistic()
    phi = learner.weights()
    update = ALGORITHMS[algorithm].local_update
    assert update is not None
    mean = Mean(weights.pack(phi).numel())
    for site in range(3):
        cases = some_cases(site, count=8 + 12 * site)
        done = update(learner, phi, [Episode(cases, cases)], training, Draws.of_seed(0, "train", site), {})
        mean.add(weights.pack(done.delta), float(weight_of(training, len(cases))))
    state, _ = outer_loop.apply(
        outer_loop.init(weights.pack(phi)), mean.result(), training.outer, training.rounds
    )
    return state.phi


def test_fedavg_is_reptile_with_meta_lr_1_uniform_weights_and_no_annealing() -> None:
    """The identity of common/algorithms/fedavg.py, to the last bit."""
    reptile = one_round("reptile", "algorithms.reptile.outer.meta-lr-final=1.0")
    assert torch.equal(reptile, one_round("fedavg", "algorithms.fedavg.weighting=uniform"))
    assert not torch.equal(reptile, one_round("fedavg"))


def test_fedprox_with_mu_0_is_fedavg() -> None:
    """And with mu > 0 it is not."""
    still = ["algorithms.fedprox.proximal=0.0"]
    assert torch.equal(one_round("fedprox", *still), one_round("fedavg"))
    assert not torch.equal(one_round("fedprox", "algorithms.fedprox.proximal=5.0"), one_round("fedavg"))


def test_fedavg_adopts_the_mean_of_phi_tilde() -> None:
    """One site: phi after a round is that site's phi_tilde, up to one float32 rounding."""
    learner, cases = logistic(), some_cases(4)
    phi = learner.weights()
    training = CONFIG.training_of("fedavg")
    update = ALGORITHMS["fedavg"].local_update
    assert update is not None
    done = update(learner, phi, [Episode(cases, cases)], training, Draws.of_seed(1), {})
    mean = Mean(3)
    mean.add(weights.pack(done.delta), 12.0)
    state, _ = outer_loop.apply(outer_loop.init(weights.pack(phi)), mean.result(), training.outer, 5)
    expected = weights.pack(phi) + weights.pack(done.delta)
    torch.testing.assert_close(state.phi, expected, rtol=1e-6, atol=1e-7)


def test_the_same_seed_initialises_the_same_network_and_leaves_the_global_generator() -> None:
    """Building a network draws from its own seed only."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = logistic().weights(), logistic().weights()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
