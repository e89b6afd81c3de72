"""Flower's Strategy for meta-training: messages out, replies in, no mathematics.

The coordinator's arithmetic is `outer_loop.apply` on the mean from `aggregate.Mean`. `start` is ours
because Flower's cannot begin after round 0 and holds a cohort's replies together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat, zip_longest
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from common import wire
from common.algorithms.algorithm import longest_delta
from common.config import Config
from common.errors import NothingLearnedError, TooFewError
from server.checkpoint import Checkpoint
from server.clip import following
from server.cohort import cohort, least
from server.exchange import exchange
from server.gather import Gathered, Plain
from server.groups import together
from server.outer_loop import OuterState, apply
from server.secure import SecureSum

logger = logging.getLogger("zamenis.server")
PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds between two looks for hospitals that are away; the last from there on."""
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
    secure: Sequence[SecureSum] = ()
    """Gathers a round so that only its sum is seen, or each group's; without it, deltas come in plain."""
    run: str = ""
    """Names this meta-training to its sites."""
    statistics: str = ""
    """What its sites standardise numeric columns with (`server.columns`); empty: each its own."""
    groups: Sequence[Sequence[str]] = ()
    """The sites in groups, each a mean of its own (`server.groups`); none: all are one mean."""

    def __post_init__(self) -> None:
        self.training = self.config.training_of(self.algorithm)
        by_node = {node: site for site, node in self.sites.items()}
        self._plain = Plain(self.training, self.state.phi.numel(), by_node, self.groups)

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info("%s over %d sites, %d rounds", self.algorithm, len(self.sites), self.training.rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one instruction for each site of the round's cohort; phi is this strategy's own."""
        return list(self._instructions(server_round, self._cohort(server_round)).values())

    def _instructions(self, server_round: int, sites: Iterable[str]) -> dict[str, Message]:
        instruction = wire.Instruction(
            config=self.config.to_json(),
            algorithm=self.algorithm,
            server_round=server_round,
            run=self.run,
            statistics=self.statistics,
            clip_norm=self.state.clip,
        )
        phi = wire.vector(self.state.phi)
        seconds = self.training.round_timeout
        return {
            site: wire.instruct(self.sites[site], wire.TRAIN, instruction, phi, seconds=seconds)
            for site in sites
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, as they come, into the next phi."""
        started = time.monotonic()
        parts = self._plain.gather(self._cohort(server_round), replies, self.state.clip)
        return None, MetricRecord({**self._conclude(server_round, self._together(parts), started)})

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
            self._round(grid, server_round)
            self.on_round(Checkpoint(self.state, self.history, self.statistics, self.run))
        for secure in self.secure:
            secure.finish(grid)
        return Result()

    def _round(self, grid: Grid, server_round: int) -> None:
        """Take one round; where too few are there for it, wait for those who can be back in a moment.

        TooFewError: they were not back within the round's timeout, or too many refuse, or this was the last
        round and none has changed phi. The round is not spent: a resumed run takes it again.
        """
        started = time.monotonic()
        parts: list[Gathered] = []
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            first, parts = not parts, self._gathered(grid, server_round, parts)
            found = self._together(parts)
            away = found.coming() if self._short(found) else []
            if away and first:
                told, seconds = ", ".join(away), self.training.round_timeout
                logger.warning("round %d waits for %s, for %g s at most", server_round, told, seconds)
            if not away or not self._back(grid, away, started, pause):
                break
        self._stop_where_hopeless(server_round, found)
        self._conclude(server_round, found, started)

    def _back(self, grid: Grid, sites: Sequence[str], started: float, pause: float) -> bool:
        """Return, after a pause, whether a node has come back before the round's time was over."""
        awaited = {self.sites[site] for site in sites}
        while True:
            left = started + self.training.round_timeout - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            if awaited <= set(grid.get_node_ids()):
                return True

    def _short(self, found: Gathered) -> bool:
        return found.mean is None or found.sites < self._least

    def _stop_where_hopeless(self, server_round: int, found: Gathered) -> None:
        """Raise TooFewError where trying on would spend rounds and change nothing."""
        if not self._short(found):
            return
        asked = len(self._cohort(server_round))
        untaught = not any("delta-norm" in entry for entry in self.history)
        if found.coming():
            remedy = "Nothing finished is lost: resume the run when they are back."
        elif not self.training.min_cohort:
            return  # whoever is missing is named, whatever the reason
        elif asked - len(found.refusing()) < self._least:
            remedy = "Nothing finished is lost: put that right, then resume the run."
        elif untaught and server_round == self.training.rounds:
            remedy = "No round has changed the model. Put that right, then resume the run."
        else:
            return
        stopped = NothingLearnedError if untaught else TooFewError
        raise stopped(
            f"round {server_round}: of {asked} hospitals {found.sites} took part, and a round needs "
            f"{self._least}.\n{found.why()}\n{remedy}"
        )

    @property
    def _least(self) -> int:
        """Hospitals that a round needs; of one alone there is no sum."""
        return max(least(self.training, self.sites), 2 if self.secure else 1)

    def _gathered(self, grid: Grid, server_round: int, before: Sequence[Gathered]) -> list[Gathered]:
        """Take a round's mean, or its sums, group after group; no message waits while another group is asked.

        A sum that was opened `before` stands: it must not be opened again over others.
        """
        if not self.secure:
            messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
            replies = exchange(grid, messages, timeout=self.training.round_timeout)
            coming = (reply for _, reply in replies)
            return self._plain.gather(self._cohort(server_round), coming, self.state.clip)
        last = server_round == self.training.rounds
        now, following = self._cohort(server_round), [] if last else self._cohort(server_round + 1)
        parts = []
        for secure, part in zip_longest(self.secure, before):
            if part is None or part.mean is None:
                wanted = [site for site in now if site in secure.sites]
                then = [site for site in following if site in secure.sites]
                instructions = self._instructions(server_round, wanted)
                part = secure.gather(grid, instructions, then, self.state.clip)
            parts.append(part)
        return parts

    def _together(self, parts: Sequence[Gathered]) -> Gathered:
        return together(self.training, self.groups, parts) if self.groups else parts[0]

    def _conclude(self, server_round: int, found: Gathered, started: float) -> dict[str, float]:
        """Take the outer step on what was gathered, and write the round down.

        With fewer than `min_cohort` usable replies phi stays as it was; where that is 0, one that is
        missing raises DataError, and phi and the checkpoint stay at the round before.
        """
        mean = found.enough(self.training, f"round {server_round}")
        self.state, told = apply(self.state, mean, self.training.outer, self.training.rounds)
        if found.episodes:
            told["loss"] = found.loss_sum / found.episodes
        if found.sites:
            told |= self._follow(found.within / found.sites, server_round)
        seconds = time.monotonic() - started
        entry = {"round": server_round, "sites": found.sites, "seconds": seconds, **told}
        named = {"barred": found.barred, "missing": found.missing, "remarks": found.remarks}
        self.history.append(entry | {name: told for name, told in named.items() if told})
        return told

    def _follow(self, share: float, server_round: int) -> dict[str, float]:
        """Let the clip follow the share of sites that were within it; return what this round's was."""
        parameters = self.state.phi.numel()
        clip = longest_delta(self.training, parameters, self.state.clip)
        self.state = replace(self.state, clip=following(clip, self.training, parameters, server_round, share))
        return {"clip": clip, "within": share}

    def _cohort(self, server_round: int) -> list[str]:
        return cohort(self.sites, self.training.cohort, seed=self.config.seed, server_round=server_round)
