"""Membership inference: telling a hospital's training patients from its others by what a coordinator holds.

Two published scores, higher for members:

- loss: minus the loss of a patient's images under the updated weights (Yeom et al. 2018, CSF, "Privacy Risk
  in Machine Learning", section 3);
- alignment: the cosine of the delta with minus the gradient of the images' loss at phi (the cosine attack of
  Li, Li and Ribeiro 2023, ICLR, "Effective passive membership inference attacks in federated learning
  against overparameterized models").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from client.dataset import Hospital
from common import seeds
from common.cases import Cases
from common.learner import Learner
from common.tasks.classification import metrics
from common.weights import unpack
from simulation.attack.cohort import Sight, Vector


@dataclass(frozen=True)
class Leak:
    """The chance that a member scores above a non-member, averaged over hospitals, with its 95 % interval."""

    view: str
    score: str
    auroc: float
    low: float
    high: float


def infer(
    learner: Learner, sight: Sight, hospitals: Sequence[Hospital], *, seed: int, replicates: int
) -> list[Leak]:
    """Return how well membership shows: in phi alone, plain deltas, masked vectors, and the cohort's mean.

    Members are a hospital's adaptation patients, non-members its test patients; a patient's score is the mean
    over its images.
    """
    scores: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for hospital in hospitals:
        everyone = hospital.everyone
        held = {
            "plain": sight.plain[hospital.name],
            "masked": sight.masked[hospital.name],
            "sum": sight.mean,
        }
        found = {("phi", "loss"): -_losses(learner, sight.phi, everyone)}
        for view, delta in held.items():
            found[view, "loss"] = -_losses(learner, sight.phi + delta, everyone)
        aligned = _alignments(learner, sight.phi, list(held.values()), everyone)
        found |= {(view, "alignment"): column for view, column in zip(held, aligned, strict=True)}
        for key, values in found.items():
            scores.setdefault(key, []).append(_per_patient(values, everyone))
    members = [_per_patient(_membership(hospital), hospital.everyone) for hospital in hospitals]
    resamples = [
        _resamples(one, seeds.derive(seed, "attack", "bootstrap", hospital.name), replicates)
        for one, hospital in zip(members, hospitals, strict=True)
    ]
    return [_leak(key, mine, members, resamples) for key, mine in scores.items()]


def _membership(hospital: Hospital) -> NDArray[np.float64]:
    return np.repeat([1.0, 0.0], [len(hospital.adaptation), len(hospital.test)])


def _losses(learner: Learner, phi: Vector, cases: Cases) -> NDArray[np.float64]:
    """Return every case's loss in nats."""
    logits = learner.logits(unpack(phi, learner.weights()), cases.inputs)
    each = [
        learner.task.loss(logit[None], label[None]) for logit, label in zip(logits, cases.labels, strict=True)
    ]
    return torch.stack(each).double().numpy()


def _alignments(
    learner: Learner, phi: Vector, deltas: Sequence[Vector], cases: Cases
) -> list[NDArray[np.float64]]:
    """Return for each delta every case's cosine with it."""
    learner.load(unpack(phi, learner.weights()))
    parameters = list(learner.network.parameters())
    directions = functional.normalize(torch.stack(list(deltas)), dim=1)
    found = []
    for place in range(len(cases)):
        one = cases.at(torch.tensor([place]))
        loss = learner.task.loss(learner.network(one.inputs), one.labels)
        gradients = torch.autograd.grad(loss, parameters)
        gradient = torch.cat([gradient.reshape(-1) for gradient in gradients])
        found.append(directions @ functional.normalize(-gradient, dim=0))
    return list(torch.stack(found, dim=1).double().numpy())


def _per_patient(values: NDArray[np.float64], cases: Cases) -> NDArray[np.float64]:
    """Return each patient's mean, patients in ascending order."""
    places = np.unique(cases.patients.numpy(), return_inverse=True)[1]
    means: NDArray[np.float64] = np.bincount(places, values) / np.bincount(places)
    return means


def _resamples(members: NDArray[np.float64], seed: int, replicates: int) -> NDArray[np.float64]:
    """Return how often each patient counts: once each, then as bootstrap draws within either side."""
    chance = np.random.default_rng(seed)
    counts = np.ones((replicates + 1, len(members)))
    for side in (0.0, 1.0):
        mine = np.flatnonzero(members == side)
        counts[1:, mine] = chance.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), replicates)
    return counts


def _leak(
    key: tuple[str, str],
    scores: Sequence[NDArray[np.float64]],
    members: Sequence[NDArray[np.float64]],
    resamples: Sequence[NDArray[np.float64]],
) -> Leak:
    aurocs = np.mean([_aurocs(*one) for one in zip(scores, members, resamples, strict=True)], axis=0)
    low, high = np.quantile(aurocs[1:], [0.025, 0.975])
    return Leak(*key, float(aurocs[0]), float(low), float(high))


def _aurocs(
    scores: NDArray[np.float64], members: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the AUROC under each row of counts; only the order of scores matters."""
    ranks = np.unique(scores, return_inverse=True)[1] / len(scores)
    found = metrics(np.stack([1 - ranks, ranks], axis=1), members.astype(np.int64), counts)
    return found["auroc"]


def by_view(leaks: Sequence[Leak]) -> Mapping[str, Mapping[str, Leak]]:
    """Return leaks by what the coordinator holds, then by score."""
    views: dict[str, dict[str, Leak]] = {}
    for leak in leaks:
        views.setdefault(leak.view, {})[leak.score] = leak
    return views
