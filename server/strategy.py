"""Flower's Strategy for meta-training: messages out, replies in, no mathematics.

The coordinator's arithmetic is `outer_loop.apply` on the mean from `aggregate.Mean`. `start` is ours
because Flower's cannot begin after round 0 and holds a cohort's replies together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from common import wire
from common.algorithms.algorithm import longest_delta
from common.config import Config
from common.errors import DataError, WireError
from server.aggregate import Mean, in_order
from server.checkpoint import Checkpoint
from server.cohort import cohort
from server.exchange import exchange
from server.outer_loop import OuterState, apply

logger = logging.getLogger("zamenis.server")
ROUNDING = 1e-5
"""Relative error that float32 may add to the length of a clipped delta."""
OnRound = Callable[[Checkpoint], None]


@dataclass
class MetaStrategy(Strategy):
    """One algorithm's meta-training over `sites` (names and Flower's node ids)."""

    config: Config
    algorithm: str
    sites: Mapping[str, int]
    state: OuterState
    history: list[Mapping[str, Any]] = field(default_factory=list)
    on_round: OnRound = lambda checkpoint: None

    def __post_init__(self) -> None:
        self.training = self.config.training_of(self.algorithm)
        self._site_of = {node: site for site, node in self.sites.items()}

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info("%s over %d sites, %d rounds", self.algorithm, len(self.sites), self.training.rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one instruction for each site of the round's cohort; phi is this strategy's own."""
        instruction = wire.Instruction(
            config=self.config.to_json(), algorithm=self.algorithm, server_round=server_round
        )
        phi = wire.vector(self.state.phi)
        seconds = self.training.round_timeout
        return [
            wire.instruct(self.sites[site], wire.TRAIN, instruction, phi, seconds=seconds)
            for site in self._cohort(server_round)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, as they come, into the next phi.

        With fewer than `min_cohort` usable replies phi stays as it was; where that is 0, one that is
        missing raises DataError, and phi and the checkpoint stay at the round before.
        """
        started = time.monotonic()
        mean, answered, episodes, loss = Mean(self.state.phi.numel()), 0, 0, 0.0
        missing = dict.fromkeys(self._cohort(server_round), "did not answer in time")
        for site, contribution in self._usable(server_round, replies, missing):
            del missing[site]
            by_examples = self.training.weighting == "examples"
            mean.add(contribution.delta, float(contribution.cases) if by_examples else 1.0)
            answered += 1
            episodes += contribution.episodes
            loss += contribution.loss_sum
        for site, words in missing.items():
            logger.warning("round %d: %s is left out: %s", server_round, site, words)
        if missing and not self.training.min_cohort:
            lines = [f"round {server_round}: {site}: {words}" for site, words in missing.items()]
            raise DataError("\n".join(lines))
        enough = answered >= self.training.min_cohort
        self.state, told = apply(
            self.state, mean.result() if enough else None, self.training.outer, self.training.rounds
        )
        if episodes:
            told["loss"] = loss / episodes
        entry = {"round": server_round, "sites": answered, "seconds": time.monotonic() - started, **told}
        self.history.append(entry)
        return None, MetricRecord({**told})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: phi is judged by adapting it (see `server.evaluation`), not between rounds."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing, as nothing was asked."""
        return None

    def start(self, grid: Grid, *_: Any, **__: Any) -> Result:
        """Run the rounds that are left, calling `on_round` after each with all that is needed to resume."""
        self.summary()
        for server_round in range(self.state.server_round + 1, self.training.rounds + 1):
            messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
            replies = exchange(grid, messages, timeout=self.training.round_timeout)
            self.aggregate_train(server_round, (reply for _, reply in replies))
            self.on_round(Checkpoint(self.state, self.history))
        return Result()

    def _check_length(self, contribution: wire.Contribution) -> None:
        """Raise WireError for a delta that no honest site sends."""
        longest = longest_delta(self.training, self.state.phi.numel())
        length = float(torch.linalg.vector_norm(contribution.delta, dtype=torch.float64))
        if length > longest * (1 + ROUNDING):
            raise WireError(f"delta is {length:.3g} long, and none may be longer than {longest:.3g}.")

    def _cohort(self, server_round: int) -> list[str]:
        return cohort(self.sites, self.training.cohort, seed=self.config.seed, server_round=server_round)

    def _usable(
        self, server_round: int, replies: Iterable[Message], missing: dict[str, str]
    ) -> Iterator[tuple[str, wire.Contribution]]:
        """Yield the contributions in site order; why another cannot be used is put into `missing`."""
        arrivals = ((self._site_of[reply.metadata.src_node_id], reply) for reply in replies)
        for site, reply in in_order(arrivals, self._cohort(server_round)):
            try:
                if reply.has_error():
                    raise WireError(wire.words_of(reply).removeprefix(f"{site}: "))
                contribution = wire.read_contribution(reply, self.state.phi.numel())
                self._check_length(contribution)
                yield site, contribution
            except WireError as error:
                missing[site] = str(error)
