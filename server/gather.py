"""A round's replies, as they come, into one mean; with what is wrong with those that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from common import wire
from common.algorithms.algorithm import longest_delta
from common.errors import PolicyError, SecAggError, TooFewError, WireError
from common.secagg.reasons import WORDS, Reason
from common.sections import Training
from common.weighting import most_weight
from server.aggregate import Mean, aggregator, in_order
from server.exchange import exchange
from server.outer_loop import Vector
from server.robust import Deltas
from server.standing import SITS_OUT

logger = logging.getLogger("zamenis.server")
ROUNDING = 1e-5
"""Relative error that float32 may add to the length of a clipped delta."""
NEXT_SLOT = "came too late to deal for this slot; it is asked for the next"
OTHERS = "it was there; too few others were"
COMING = frozenset({wire.ABSENT, wire.WORDS[wire.LOST], NEXT_SLOT})
"""What is said of a hospital that can be back in a moment."""
UNCONFIRMED = frozenset(
    WORDS[reason]
    for reason in (Reason.BAD_THRESHOLD, Reason.SPARSE_GRAPH, Reason.SPLIT_VIEWS, Reason.TOO_FEW_HONEST)
)
"""What a hospital says that has too few others confirmed."""
CONFIRM = "too few of the others are confirmed there, which `zamenis-hospital confirm` mends: "
LASTING = (
    UNCONFIRMED
    | frozenset(
        wire.WORDS[code] for code in (wire.REFUSED, wire.FORBIDDEN, wire.UNKNOWN_PROTOCOL, wire.UNFIT)
    )
    | {
        WORDS[reason]
        for reason in (
            Reason.BAD_LAYOUT,
            Reason.FINISHED_RUN,
            Reason.LOW_THRESHOLD,
            Reason.NOT_NAMED,
            Reason.OTHER_LAYOUT,
            Reason.OTHER_VERSION,
            Reason.OVERFLOW,
            Reason.SHARED_KEY,
            Reason.UNTRUSTED,
            Reason.WAITS_FOR_ALLOW,
        )
    }
)
"""What a hospital says that refuses this run until a person has changed something."""


@dataclass
class Gathered:
    """What a round brought: the mean where there is one, sums over those who answered, and who is missing."""

    missing: dict[str, str]
    """Why each site of the cohort that is not in the mean is not."""
    mean: Vector | None = None
    sites: int = 0
    episodes: int = 0
    loss_sum: float = 0.0
    within: float = 0
    """Sites whose delta was within the round's clip before it was clipped; of groups, what these agree on."""
    barred: dict[str, str] = field(default_factory=dict)
    """Who sits this round out because it stopped or spoilt sums, and why."""
    remarks: list[str] = field(default_factory=list)
    """What else a person should know of this round."""

    def coming(self) -> list[str]:
        """Return who is missing and can be back in a moment."""
        return sorted(site for site, words in self.missing.items() if _passes(words))

    def refusing(self) -> list[str]:
        """Return who is missing, and will be until a person has changed something."""
        return sorted(site for site, words in self.missing.items() if _lasts(words))

    def why(self) -> str:
        """Return why each site that is missing is, those with the same reason together."""
        sites: dict[str, list[str]] = {}
        for site, words in sorted(self.missing.items()):
            first = CONFIRM if words in UNCONFIRMED else ""
            sites.setdefault(first + words.rstrip("."), []).append(site)
        return "\n".join(f"  {', '.join(names)}: {words}." for words, names in sites.items())

    def enough(self, training: Training, when: str) -> Vector | None:
        """Return the mean where `min_cohort` sites are in it, after saying who is not.

        TooFewError: `min_cohort` is 0, so that none may be missing, and one is.
        """
        for site, words in self.missing.items():
            logger.warning("%s: %s is left out: %s", when, site, words)
        if self.missing and not training.min_cohort:
            raise TooFewError("\n".join(f"{when}: {site}: {words}" for site, words in self.missing.items()))
        return self.mean if self.sites >= training.min_cohort else None


def _passes(words: str) -> bool:
    return words in COMING or words.startswith(SITS_OUT)


def _lasts(words: str) -> bool:
    return words in LASTING or words.startswith(PolicyError.WORDS)


@dataclass
class Part:
    """Sites whose deltas become one mean, as these come."""

    found: Gathered
    deltas: Deltas

    def add(self, site: str, contribution: wire.Contribution) -> None:
        """Take one site's part."""
        del self.found.missing[site]
        self.deltas.add(contribution.delta, float(contribution.weight))
        self.found.sites += 1
        self.found.episodes += contribution.episodes
        self.found.loss_sum += contribution.loss_sum
        self.found.within += contribution.within

    def finish(self) -> Gathered:
        """Return what came, with its mean."""
        if self.found.sites:
            self.found.mean = self.deltas.result()
        return self.found


@dataclass(frozen=True)
class Plain:
    """Gathers deltas that the coordinator sees one by one."""

    training: Training
    parameters: int
    site_of: Mapping[int, str] = field(repr=False)
    """Site by Flower's node id."""
    groups: Sequence[Sequence[str]] = ()
    """The sites in groups, each a mean of its own (`server.groups`); none: all are one."""

    def gather(self, cohort: Sequence[str], replies: Iterable[Message], clip: float = 0.0) -> list[Gathered]:
        """Return what a round's cohort brings together, group by group; no delta is longer than `clip`."""
        parts = [self._part(group) for group in self.groups or [cohort]]
        part_of = {site: part for part in parts for site in part.found.missing}
        missing: dict[str, str] = {}
        for site, contribution in self._usable(cohort, replies, missing, clip):
            part_of[site].add(site, contribution)
        for site, words in missing.items():
            part_of[site].found.missing[site] = words
        return [part.finish() for part in parts]

    def _part(self, sites: Sequence[str]) -> Part:
        deltas = Mean(self.parameters) if self.groups else aggregator(self.training, self.parameters)
        return Part(Gathered(dict.fromkeys(sites, wire.SILENT)), deltas)

    def _usable(
        self, cohort: Sequence[str], replies: Iterable[Message], missing: dict[str, str], clip: float
    ) -> Iterator[tuple[str, wire.Contribution]]:
        """Yield the contributions in site order; why another cannot be used is put into `missing`."""
        arrivals = ((self.site_of[reply.metadata.src_node_id], reply) for reply in replies)
        for site, reply in in_order(arrivals, cohort):
            try:
                yield site, self._read(site, reply, clip)
            except WireError as error:
                missing[site] = str(error)

    def _read(self, site: str, reply: Message, clip: float) -> wire.Contribution:
        if reply.has_error():
            raise WireError(why(site, reply))
        contribution = wire.read_contribution(reply, self.parameters)
        if contribution.weight > (most := most_weight(self.training)):
            raise WireError(f"weighs {contribution.weight}, and none may weigh more than {most}.")
        longest = longest_delta(self.training, self.parameters, clip)
        length = float(torch.linalg.vector_norm(contribution.delta, dtype=torch.float64))
        if length > longest * (1 + ROUNDING):
            raise WireError(f"delta is {length:.3g} long, and none may be longer than {longest:.3g}.")
        return contribution


def collect(
    grid: Grid, messages: Mapping[str, Message], take: Callable[[str, Message], None], *, timeout: float
) -> dict[str, str]:
    """Send messages by site, take replies as they come, and return why one that came cannot be used."""
    names, troubles = list(messages), {}
    for place, reply in exchange(grid, list(messages.values()), timeout=timeout):
        site = names[place]
        try:
            if reply.has_error():
                raise WireError(why(site, reply))
            take(site, reply)
        except (WireError, SecAggError) as error:
            troubles[site] = str(error)
    return troubles


def why(site: str, reply: Message) -> str:
    """Return why a site's reply is an error, without its name."""
    return wire.words_of(reply).removeprefix(f"{site}: ")
