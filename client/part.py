"""A hospital's part in one algorithm: the network it computes with, and what of it crosses the wire."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, replace

import torch

from client import classes
from client.dataset import Hospital
from client.episodes import episodes
from client.few_shot import Judge
from client.floors import check_floors, drawn_from
from client.kept import Kept
from client.legacy_pins import check_pins
from client.policy import policy_of
from client.site import Node, learner_of
from common import columns, heads, weights, wire
from common.algorithms import ALGORITHMS
from common.algorithms.algorithm import clipped, finite, longest_delta, within_clip
from common.cases import Cases
from common.config import Config
from common.errors import DataError, WireError
from common.learner import Learner, on_cpu
from common.sections import Training
from common.seeds import Draws
from common.weighting import weight_of
from common.weights import Weights

logger = logging.getLogger("zamenis.client")


@dataclass(frozen=True)
class Part:
    """One algorithm at one hospital."""

    node: Node
    hospital: Hospital
    config: Config
    algorithm: str
    statistics: str = ""
    """What the federation standardises its numeric columns with, as it came; empty: its own."""

    def like(self) -> Weights:
        """Return weights of the names and shapes that cross."""
        return self._learner().shared(self._training.normalisation)

    def train(
        self, phi: Weights, *, run: str, server_round: int, clip: float = 0.0, max_norm: float = math.inf
    ) -> wire.Contribution:
        """Return this round's contribution; what stays at home is kept for the meta-training named `run`.

        It is no longer than the round's `clip` (0: as far as [training] goes) and than `max_norm`.
        """
        algorithm, training = ALGORITHMS[self.algorithm], self._training
        assert algorithm.local_update is not None  # noqa: S101 - the coordinator never trains local-only
        policy = policy_of(self.node.policy_file)
        lesson = classes.lesson(self.hospital, self.config, self.algorithm)
        known = drawn_from(policy, lesson, training, algorithm)
        draws = self._draws(phi, server_round, clip)
        tasks = episodes(
            lesson.cases,
            lesson.strata,
            training,
            draws.child("episodes"),
            halves=algorithm.queries,
            known=known,
        )
        check_floors(policy, tasks, training, algorithm)
        learner = self._learner(0 if training.head == "shared" else training.way or len(lesson.classes))
        kept = Kept(self.node.own_state, run) if training.keeps else None
        memory = kept.before(server_round) if kept else {}
        own = [name for name in learner.normalisation() if name not in phi]
        begun = {**learner.initial, **{name: memory.pop(name) for name in own if name in memory}, **phi}
        update = algorithm.local_update(learner, begun, tasks, training, draws.child("steps"), memory)
        if kept:
            kept.keep(on_cpu(memory | {name: begun[name] + update.delta[name] for name in own}), server_round)
        whole = weights.pack({name: update.delta[name] for name in phi})
        within = within_clip(whole, training, clip)
        told, loss_sum = finite(whole, update.loss_sum, update.episodes)
        if told is not whole:
            logger.warning("the training blew up: its weights or losses are not finite, so it adds nothing")
        delta = clipped(told, training, min(longest_delta(training, len(whole), clip), max_norm))
        weight = weight_of(training, len(torch.unique(lesson.cases.patients)))
        rounding = draws.child("rounding").key()
        return wire.Contribution(delta, loss_sum, update.episodes, weight, within, rounding)

    def _draws(self, phi: Weights, server_round: int, clip: float) -> Draws:
        """Return what a round draws from: another stream where anything that was chosen for it differs."""
        told = hashlib.sha256(weights.pack(phi).numpy().tobytes()).hexdigest()
        settings, chosen = self.config.decisive(self.algorithm), repr(clip)
        return self.hospital.draws.child("train", settings, self.statistics, told, server_round, chosen)

    def sum_columns(self) -> wire.Contribution:
        """Return the sums over numeric columns of the cases that it trains on (`common.columns`)."""
        measured = self.hospital.measured
        if measured is None:
            raise DataError("has no numeric columns that the federation standardises.")
        cases = classes.lesson(measured, self.config, self.algorithm).cases
        check_pins(self.node.own_states, self.hospital.parts, self.hospital.secret, cases)
        rounding = self.hospital.draws.child("columns").key()
        return wire.Contribution(
            columns.sums(cases.inputs.numpy()), 0.0, 1, 1, within=True, rounding=rounding
        )

    def judge(self, phi: Weights) -> Judge:
        """Return who judges phi on this hospital's own task."""
        hospital, names = classes.examined(self.hospital, self.config)
        count = self.config.experiment.way or len(names)
        if heads.keeps_head(self.config, self.algorithm, count):
            learner, mine = self._learner(), phi
        else:
            learner = self._learner(count)
            mine = {name: value for name, value in phi.items() if not name.startswith("adapter.")}
        whole = {**learner.initial, **mine}
        if self._training.normalisation != "shared":
            learner = learner.calibrated(whole, hospital.adaptation.inputs)
        strata = classes.strata(names, self.config)
        kept_in = self.node.predictions
        return Judge(ALGORITHMS[self.algorithm], learner, whole, hospital, self.config, strata, kept_in)

    @property
    def _training(self) -> Training:
        return self.config.training_of(self.algorithm)

    def _learner(self, fresh_head: int = 0) -> Learner:
        """Return the network as it crosses, or with a fresh head of so many classes."""
        shape = tuple(self.hospital.adaptation.inputs.shape[1:])
        return learner_of(self.node.device, shape, self.config.to_json(), self.algorithm, fresh_head)


def standardised(hospital: Hospital, statistics: columns.Statistics) -> Hospital:
    """Return the hospital with the federation's statistics in place of its own; the one given stays as it is.

    WireError: they are of other columns than this hospital's.
    """
    measured, count = hospital.measured, hospital.columns
    if measured is None or len(statistics.mean) != count:
        raise WireError(f"statistics are of {len(statistics.mean)} columns; this hospital has {count}.")

    def side(cases: Cases, raw: Cases) -> Cases:
        numeric = torch.from_numpy(statistics.standardise(raw.inputs.numpy())).float()
        return replace(cases, inputs=torch.cat([numeric, cases.inputs[:, count:]], dim=1))

    adaptation, test = side(hospital.adaptation, measured.adaptation), side(hospital.test, measured.test)
    return replace(hospital, adaptation=adaptation, test=test)
