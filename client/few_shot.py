"""Judging an initialisation at a hospital: adapt to K of its patients, test on its other patients.

The same (seed, site, K, draw) draws the same support for every algorithm and recipe, and the same
bootstrap resamples the same draws and test patients, so differences between algorithms are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.adapt import Adapted, adapt_safely
from client.dataset import Hospital
from client.episodes import few_cases
from common import seeds, wire
from common.algorithms import Algorithm
from common.cases import Cases
from common.config import Config
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.tasks.task import Metrics
from common.weights import Weights

LEAST_TEST_PATIENTS = 5
"""Test patients that every class needs before a figure is worth printing."""


@dataclass(frozen=True)
class Question:
    """What the coordinator asks: how good is phi here, with this K, this recipe and these draws."""

    shot: int
    recipe: InnerLoop | None
    """None: phi as it is, whatever K."""
    draws: int
    replicates: int
    purpose: str


@dataclass(frozen=True)
class Judge:
    """One algorithm's phi at one hospital, to be asked about any K."""

    algorithm: Algorithm
    learner: Learner
    phi: Weights
    hospital: Hospital
    config: Config

    def answer(self, question: Question) -> wire.Judgement:
        """Return the metrics per draw and per bootstrap replicate, or why this K is left out here."""
        reason = cannot_judge(self.hospital, self.config.task.classes, question.shot)
        if reason:
            return wire.Judgement({}, {}, 0.0, 0.0, left_out=reason)
        test = self.hospital.test
        zero_shot = self.learner.logits(self.phi, test.inputs)
        logits, shares, adapts = [zero_shot], [0.0], bool(question.shot and question.recipe)
        if adapts:
            drawn = [self._adapt(question, draw) for draw in range(question.draws)]
            told = [(one.predict(test.inputs, before=zero_shot), one.share) for one in drawn]
            told = [(found, share) if found.isfinite().all() else (zero_shot, 0.0) for found, share in told]
            logits, shares = [found for found, _ in told], [share for _, share in told]
        plain, replicates = self._score(logits, question.replicates)
        headline = self.config.experiment.metric
        before = self._metrics(zero_shot, np.ones((1, len(test))))[headline][0]
        return wire.Judgement(
            draws=plain,
            replicates=replicates,
            hurt=float(np.mean(plain[headline] < before)) if adapts else 0.0,
            fell_back=float(np.mean(np.array(shares) == 0.0)) if adapts else 0.0,
        )

    def _adapt(self, question: Question, draw: int) -> Adapted:
        """Adapt to one support draw."""
        assert question.recipe is not None  # noqa: S101 - asked only where there is a recipe
        purpose = (question.purpose, self.hospital.name, question.shot, draw)
        generator = seeds.generator(self.config.seed, *purpose)
        support = self._support(question.shot, generator)
        if self.algorithm.local_update is None or not self.config.adaptation.safeguard:
            after = self.algorithm.adapt(self.learner, self.phi, support, question.recipe, generator)
            return Adapted(partial(self.learner.logits, self.phi), after, 1.0)
        adapt = self.algorithm.adapt
        return adapt_safely(adapt, self.learner, self.phi, support, question.recipe, generator)

    def _support(self, shot: int, generator: torch.Generator) -> Cases:
        cases = self.hospital.adaptation
        if shot == wire.ALL_CASES:
            return cases
        classes = len(self.config.task.classes)
        return cases.at(few_cases(cases, classes=classes, shot=shot, generator=generator))

    def _score(self, logits: list[Tensor], replicates: int) -> tuple[Metrics, Metrics]:
        """Return each metric by `[draw]`, and by `[replicate]` as a mean over resampled draws."""
        seed, site = self.config.seed, self.hospital.name
        cases = _bootstrap_cases(self.hospital.test, replicates, seed, site)
        weights = np.concatenate([np.ones((1, len(self.hospital.test))), cases])
        per_draw = [self._metrics(values, weights) for values in logits]
        table = {name: np.stack([metrics[name] for metrics in per_draw]) for name in per_draw[0]}
        chance = np.random.default_rng(seeds.derive(seed, "resample draws", site, len(logits)))
        chosen = chance.integers(len(logits), size=(replicates, len(logits)))
        column = np.arange(replicates)[:, None]
        return (
            {name: values[:, 0] for name, values in table.items()},
            {name: values[:, 1:][chosen, column].mean(1) for name, values in table.items()},
        )

    def _metrics(self, logits: Tensor, weights: NDArray[np.float64]) -> Metrics:
        probability = self.learner.task.probabilities(logits).numpy()
        return self.learner.task.metrics(probability, self.hospital.test.labels.numpy(), weights)


def cannot_judge(hospital: Hospital, classes: tuple[str, ...], shot: int) -> str:
    """Return why K = `shot` cannot be judged at a hospital, or nothing."""
    learnable = hospital.adaptation.per_class(len(classes))
    testable = hospital.test.per_class(len(classes))
    for name, learn, test in zip(classes, learnable, testable, strict=True):
        if test < LEAST_TEST_PATIENTS:
            return f"{test} test patients of class {name}; {LEAST_TEST_PATIENTS} needed"
        if learn < shot:
            return f"{learn} patients of class {name} to adapt with; {shot} needed"
    return ""


def _bootstrap_cases(test: Cases, replicates: int, seed: int, site: str) -> NDArray[np.float64]:
    """Return how often each test case counts in each replicate: whole patients are resampled."""
    patients, member = np.unique(test.patients.numpy(), return_inverse=True)
    chance = np.random.default_rng(seeds.derive(seed, "resample patients", site))
    even = np.full(len(patients), 1 / len(patients))
    counts = chance.multinomial(len(patients), even, size=replicates)
    return counts[:, member].astype(np.float64)
