"""Judging an initialisation at a hospital: adapt to K of its patients, test on its other patients.

The hospital's own secret draws. The same (seed, purpose, classes, K, draw) draws the same support for every
algorithm and recipe, and the same bootstrap resamples the same draws and test patients, so differences
between algorithms, and between runs of a comparison, are paired.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.adapt import Adapted, adapt_safely
from client.dataset import Hospital
from client.episodes import few_cases, relabelled
from client.predictions import file_of, keep
from client.scoring import Scored, score
from common import heads, wire
from common.algorithms import Algorithm
from common.cases import Cases
from common.config import Config
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.seeds import Draws
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

    @property
    def adapts(self) -> bool:
        """Whether phi is to be adapted at all."""
        return bool(self.shot and self.recipe)


@dataclass(frozen=True)
class Exam:
    """One draw's task at a hospital; labels are places among its classes."""

    adaptation: Cases
    test: Cases
    rows: NDArray[np.int64]
    """Where the test cases are among the hospital's."""
    classes: int


@dataclass(frozen=True)
class Judge:
    """One algorithm's phi at one hospital, to be asked about any K."""

    algorithm: Algorithm
    learner: Learner
    phi: Weights
    hospital: Hospital
    config: Config
    classes: tuple[str, ...]
    """Of which K patients each are adapted with; in classification, labels are places here."""
    predictions: Path | None = None
    """Folder in which a simulated hospital keeps what it predicts for a report."""

    def answer(self, question: Question) -> wire.Judgement:
        """Return the metrics per draw and per bootstrap replicate, or why this K is left out here."""
        reason = self._cannot_answer(question.shot)
        if reason:
            return wire.Judgement({}, {}, 0.0, 0.0, left_out=reason)
        unadapted = self._unadapted()
        if not question.adapts:
            assert unadapted is not None  # noqa: S101 - nobody asks those that cannot for it
            return self._judged(*self._score(self._kept(question, [unadapted]), question.replicates))
        shares: list[float] = []

        def drawn() -> Iterator[Scored]:
            """Yield one draw's predictions at a time: masks of many draws would fill the memory."""
            for draw in range(question.draws):
                scored, share = self._adapt_and_predict(question, draw, unadapted)
                shares.append(share)
                yield scored

        plain, replicates = self._score(self._kept(question, drawn()), question.replicates)
        headline, hurt, kind = self.config.metric, 0.0, self.config.kind
        if unadapted is not None:
            before, _ = self._score([unadapted], 0)
            after, unmoved = (kind.goodness(headline, scores[headline]) for scores in (plain, before))
            hurt = float(np.mean(after < unmoved[0]))
        return self._judged(plain, replicates, hurt, float(np.mean([share == 0.0 for share in shares])))

    def _kept(self, question: Question, predicted: Iterable[Scored]) -> Iterator[Scored]:
        """Yield what is predicted; at the end it is written where a simulated hospital keeps it."""
        if self.predictions is None or question.purpose != wire.TEST:
            yield from predicted
            return
        every = []
        for scored in predicted:
            every.append(scored)
            yield scored
        path = file_of(self.predictions, self.hospital.name, self.algorithm.name, question.shot)
        keep(path, self.learner.task, every, self.hospital.test)

    def _judged(
        self, plain: Metrics, replicates: Metrics, hurt: float = 0.0, fell_back: float = 0.0
    ) -> wire.Judgement:
        """Return what was measured; left out where the headline metric could not be."""
        headline = self.config.metric
        if np.isnan(plain[headline]).any():
            why = f"{self.config.kind.titles[headline]} is not defined on the test patients"
            return wire.Judgement({}, {}, 0.0, 0.0, left_out=why)
        return wire.Judgement(plain, replicates, hurt, fell_back)

    def predict(self, question: Question, draw: int) -> Scored:
        """Return one draw's predictions, adapted where the question says so."""
        unadapted = self._unadapted()
        if unadapted is not None and not question.adapts:
            return unadapted
        scored, _ = self._adapt_and_predict(question, draw, unadapted)
        return scored

    @property
    def _zero_shot(self) -> bool:
        return heads.predicts_unadapted(self.config, self.algorithm.name)

    def _cannot_answer(self, shot: int) -> str:
        """Return why K = `shot` has no answer here, or nothing."""
        way, name = self.config.experiment.way, self.algorithm.name
        if not shot and not self._zero_shot:
            return f"{name} has no answer to these classes without a labelled case of each"
        if len(self.classes) < 2 and self.config.kind.by_class:
            return "fewer than two of the classes to be told apart"
        if not way:
            return cannot_judge(self.hospital, self.classes, shot)
        able = len(self._able(shot))
        return "" if able >= way else f"fewer than {way} classes with enough patients for K = {shot}"

    def _able(self, shot: int) -> list[int]:
        """Return the classes with enough patients to adapt with and to test on."""
        learnable, testable = self.hospital.known
        return [
            label
            for label, (learn, test) in enumerate(zip(learnable, testable, strict=True))
            if learn >= shot and test >= LEAST_TEST_PATIENTS
        ]

    def _exam(self, question: Question, draw: int) -> Exam:
        """Return a draw's task: all the classes, or `way` of them drawn at random."""
        way, adaptation, test = self.config.experiment.way, self.hospital.adaptation, self.hospital.test
        if not way:
            return Exam(adaptation, test, np.arange(len(test)), len(self.classes))
        able = self._able(question.shot)
        order = self._draws(question, draw).child("classes").permutation(len(able))
        chosen = [able[int(place)] for place in order[:way]]
        rows = np.flatnonzero(np.isin(test.labels.numpy(), chosen))
        return Exam(relabelled(adaptation, chosen), relabelled(test, chosen), rows, way)

    def _unadapted(self) -> Scored | None:
        """Return phi's own predictions, where it has any."""
        if not self._zero_shot:
            return None
        test = self.hospital.test
        return Scored(self.learner.logits(self.phi, test.inputs), test.labels, np.arange(len(test)))

    def _adapt_and_predict(
        self, question: Question, draw: int, unadapted: Scored | None
    ) -> tuple[Scored, float]:
        """Return a draw's predictions and how much of the adapted logits is in them.

        What is not finite is replaced by phi's own, or where it has none by no preference.
        """
        exam = self._exam(question, draw)
        before = None if unadapted is None else unadapted.logits
        adapted = self._adapt(question, draw, exam)
        logits, share = adapted.predict(exam.test.inputs, before=before), adapted.share
        if not logits.isfinite().all():
            logits, share = torch.zeros_like(logits) if before is None else before, 0.0
        return Scored(logits, exam.test.labels, exam.rows), share

    def _adapt(self, question: Question, draw: int, exam: Exam) -> Adapted:
        """Adapt to one support draw."""
        assert question.recipe is not None  # noqa: S101 - asked only where there is a recipe
        draws, support = self._draws(question, draw), exam.adaptation
        if question.shot != wire.ALL_CASES:
            mine = draws.child("support")
            support = support.at(few_cases(support, classes=exam.classes, shot=question.shot, draws=mine))
        trained, adapt = self.algorithm.local_update is not None, self.algorithm.adapt
        if trained and self._zero_shot and self.config.adaptation.safeguard:
            return adapt_safely(adapt, self.learner, self.phi, support, question.recipe, draws.child("adapt"))
        after = adapt(self.learner, self.phi, support, question.recipe, draws.child("adapt"))
        return Adapted(partial(self.learner.logits, self.phi), after, 1.0)

    def _draws(self, question: Question, draw: int) -> Draws:
        """Return what one draw's support and order come from: the same for every algorithm and recipe."""
        seed, classes = self.config.seed, json.dumps(self.classes)
        return self.hospital.draws.child("judge", seed, question.purpose, question.shot, draw, classes)

    def _score(self, predicted: Iterable[Scored], replicates: int) -> tuple[Metrics, Metrics]:
        draws = self.hospital.draws.child("bootstrap", self.config.seed, json.dumps(self.classes))
        return score(self.learner.task, predicted, self.hospital.test, replicates, draws)


def cannot_judge(hospital: Hospital, classes: tuple[str, ...], shot: int) -> str:
    """Return why K = `shot` cannot be judged at a hospital, or nothing."""
    for place, name in enumerate(classes):
        learn, test = (side[place] if place < len(side) else 0 for side in hospital.known)
        of = f" of class {name}" if len(classes) > 1 else ""
        if test < LEAST_TEST_PATIENTS:
            return f"fewer than {LEAST_TEST_PATIENTS} test patients{of}"
        if learn < shot:
            return f"fewer than {shot} patients{of} to adapt with"
    return ""
