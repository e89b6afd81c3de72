"""Prototypical, Matching and Siamese Networks: their papers' equations, and what training on them sends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from common import weights
from common.algorithms import ALGORITHMS, Algorithm
from common.algorithms.matching import TEMPERATURE, score_in_context
from common.algorithms.matching import score as attention
from common.algorithms.metric import Embedded
from common.algorithms.protonet import score as by_prototype
from common.algorithms.siamese import AgainstLikeness
from common.algorithms.siamese import score as by_nearest
from common.cases import Cases, Episode
from common.config import load
from common.errors import ConfigError, DataError
from common.initialise import learner_of_algorithm, shared_weights
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.models.full_context import FullContext
from common.seeds import Draws

CONFIG = load(None, ['task.classes=["a", "b", "c"]', "model.name=mlp", "model.width=6"])
METRIC = ("protonet", "matching", "siamese")
KNOWN = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
"""Two support cases of class 0 and one of class 1."""
LABELS = torch.tensor([0, 0, 1])


def learner(algorithm: str) -> Learner:
    """Return a metric-based algorithm's network on two features."""
    return learner_of_algorithm(CONFIG, algorithm, (2,), torch.device("cpu"))


def cases(seed: int, labels: list[int], *, spread: float = 3.0) -> Cases:
    """Return one case per label, two features that lean towards it."""
    inputs = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(seed))
    inputs[:, 0] += spread * torch.tensor(labels)
    return Cases(inputs, torch.tensor(labels), torch.arange(len(labels)))


def unused(*_: Tensor) -> Tensor:
    """Stand where an algorithm compares without any weights."""
    raise AssertionError


def test_prototypes_are_class_means_and_scores_their_squared_distances() -> None:
    """Class 0 has its prototype at (1, 0), class 1 at (0, 3); from (1, 1): -(0 + 1) and -(1 + 4)."""
    assert by_prototype(unused, Embedded(KNOWN, LABELS), torch.tensor([[1.0, 1.0]])).tolist() == [
        [-1.0, -5.0]
    ]


def test_attention_is_a_softmax_of_cosines_summed_by_class() -> None:
    """Cosines of (1, 0) with (1, 0), (1, 1) and (0, 1): 1, 1/sqrt 2 and 0, over the temperature."""
    known = torch.tensor([[5.0, 0.0], [2.0, 2.0], [0.0, 3.0]])
    found = attention(unused, Embedded(known, LABELS), torch.tensor([[1.0, 0.0]])).exp()[0]
    mass = [math.exp(cosine / TEMPERATURE) for cosine in (1.0, 1 / math.sqrt(2), 0.0)]
    assert found.tolist() == pytest.approx([(mass[0] + mass[1]) / sum(mass), mass[2] / sum(mass)])


def test_a_siamese_network_answers_by_the_likeliest_pair() -> None:
    """With likeness 1 - |a_1 - b_1| - |a_2 - b_2|, (2, 1) is 1 off a case of class 0 and 4 off class 1's."""

    def compare(apart: Tensor) -> Tensor:
        return 1 - apart.sum(1, keepdim=True)

    assert by_nearest(compare, Embedded(KNOWN, LABELS), torch.tensor([[2.0, 1.0]])).tolist() == [[0.0, -3.0]]


def loss_by_the_paper(algorithm: str, embedded: Tensor, asked: Tensor, pair: Tensor, bias: Tensor) -> Tensor:
    """Return an episode's loss, case by case, of support labels 0, 0, 1, 1 and query labels 0, 1, 1."""
    truth, labels = [0, 1, 1], [0, 0, 1, 1]
    if algorithm == "siamese":
        losses: dict[bool, list[Tensor]] = {True: [], False: []}
        for query, label in zip(asked, truth, strict=True):
            for support, other in zip(embedded, labels, strict=True):
                like = torch.sigmoid(bias - pair.abs() @ (query - support).abs())
                losses[label == other].append(-torch.log(like if label == other else 1 - like))
        return (torch.stack(losses[True]).mean() + torch.stack(losses[False]).mean()) / 2
    total = torch.zeros(())
    for query, label in zip(asked, truth, strict=True):
        if algorithm == "protonet":
            classes = [-((query - embedded[at : at + 2].mean(0)) ** 2).sum() for at in (0, 2)]
            share = torch.exp(classes[label]) / (torch.exp(classes[0]) + torch.exp(classes[1]))
        else:
            cosines = torch.stack([query @ one / (query.norm() * one.norm()) for one in embedded])
            mass = torch.exp(cosines / TEMPERATURE)
            share = mass[2 * label : 2 * label + 2].sum() / mass.sum()
        total = total - torch.log(share) / len(truth)
    return total


@pytest.mark.parametrize("algorithm", METRIC)
def test_a_step_is_the_gradient_of_the_papers_loss(algorithm: str) -> None:
    """One episode with plain SGD: delta = -lr * gradient; classes 1 and 4 are numbered 0 and 1."""
    mine = learner(algorithm)
    support, query = cases(0, [1, 1, 4, 4], spread=0.3), cases(1, [1, 4, 4], spread=0.3)
    training = load(None, ["training.inner-optimizer=sgd", "training.inner-lr=0.5"]).training_of(algorithm)
    phi = mine.weights()
    update = ALGORITHMS[algorithm].local_update
    assert update is not None
    done = update(mine, phi, [Episode(support, query)], training, Draws.of_seed(0), {})
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    backbone = {name[9:]: value for name, value in leaves.items() if name.startswith("backbone.")}
    embedded, asked = (
        functional_call(mine.network.backbone, backbone, (side.inputs,)) for side in (support, query)
    )
    pair = leaves.get("adapter.weight", torch.zeros(1, 6))[0]
    loss = loss_by_the_paper(algorithm, embedded, asked, pair, leaves.get("adapter.bias", torch.zeros(1)))
    expected = torch.autograd.grad(loss.sum(), list(leaves.values()), materialize_grads=True)
    assert done.loss_sum == pytest.approx(float(loss.detach().sum()), rel=1e-5)
    for (name, delta), gradient in zip(done.delta.items(), expected, strict=True):
        torch.testing.assert_close(delta, -0.5 * gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("algorithm", "classes"),
    [*((name, count) for name in METRIC for count in (2, 3, 5)), ("matching-fce", 2), ("matching-fce", 3)],
)
def test_training_on_some_classes_tells_others_apart(algorithm: str, classes: int) -> None:
    """Points on a line: a few steps on three classes, and any number of further ones is told apart.

    Full-context embeddings learn the context as well, and are asked for no wider one.
    """
    mine, method = learner(algorithm), ALGORITHMS[algorithm]
    training = load(None, ["training.inner-lr=0.01"]).training_of(algorithm)
    tasks = [Episode(cases(2 * k, [0, 1, 2] * 2), cases(2 * k + 1, [0, 1, 2] * 3)) for k in range(60)]
    assert method.local_update is not None
    phi = mine.weights()
    delta = method.local_update(mine, phi, tasks, training, Draws.of_seed(0), {}).delta
    trained = weights.add(phi, delta)
    labels = list(range(classes))
    support, others = cases(1000, labels * 5), cases(1001, labels * 20)
    found = method.adapt(mine, trained, support, InnerLoop(1, 0.1), Draws.of_seed(0))(others.inputs)
    assert found.shape == (20 * classes, mine.task.outputs(classes))
    right = mine.task.predictions(found).argmax(1) == others.labels
    assert right.double().mean() > 0.65


def test_full_context_without_weights_is_no_context() -> None:
    """An LSTM of zeros stays at 0: g is g', and every h is f'; scores are plain attention's."""
    context = FullContext(2)
    for parameter in context.parameters():
        torch.nn.init.zeros_(parameter)
    asked = torch.tensor([[1.0, 0.5], [0.2, 2.0]])
    known = Embedded(KNOWN + 1.0, LABELS)
    torch.testing.assert_close(score_in_context(context, known, asked), attention(unused, known, asked))


def test_full_context_sees_the_support_around_a_case() -> None:
    """Another support case moves the embeddings of all, one query beside another does not."""
    context = learner("matching-fce").network.adapter
    known, asked = torch.randn(3, 6), torch.randn(2, 6)
    both = context(known, asked)
    assert not torch.allclose(both[:2], context(known + torch.eye(3, 6), asked)[:2])
    torch.testing.assert_close(both[:4], context(known, asked[:1]))


def test_a_class_without_a_case_is_said() -> None:
    """A gap in the support's labels is a class that nothing can be compared with."""
    method: Algorithm = ALGORITHMS["protonet"]
    mine = learner("protonet")
    with pytest.raises(DataError, match="no case to compare with"):
        method.adapt(mine, mine.weights(), cases(0, [0, 2]), InnerLoop(1, 0.1), Draws.of_seed(0))
    training = CONFIG.training_of("protonet")
    assert method.local_update is not None
    alone = Episode(cases(0, [1, 1]), cases(1, [1]))
    with pytest.raises(DataError, match="single class"):
        method.local_update(mine, mine.weights(), [alone], training, Draws.of_seed(0), {})


def test_what_has_nothing_to_learn_is_said() -> None:
    """A linear model is a head alone, and two of them have none; the pair weights of the third remain."""
    config = load(None, ['task.classes=["a", "b", "c"]', "model.name=linear"])
    for name in ("protonet", "matching"):
        with pytest.raises(ConfigError, match=f"{name} has nothing to learn"):
            shared_weights(config, name, (2,))
    assert sum(value.numel() for value in shared_weights(config, "siamese", (2,)).values()) == 2 + 1


def test_no_difference_speaks_for_likeness() -> None:
    """Whatever sign a pair weight has taken, cases further apart are never likelier to be of one class."""
    head = AgainstLikeness(2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.5, -0.5]]))
    near, far = (head(torch.full((1, 2), apart)).item() for apart in (1.0, 2.0))
    assert far == pytest.approx(near - 1.0)
