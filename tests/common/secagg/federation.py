"""A whole federation in memory: every transition of every site goes through its stored bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest

from common.errors import SecAggError
from common.secagg import aggregator, site
from common.secagg.encoding import dump, load
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.layout import Layout, Metric
from common.secagg.messages import Dealing, Holders, Masked, MaskRequest, Payload, UnmaskAnswer, UnmaskRequest
from common.secagg.numbers import Numbers, Policy
from common.secagg.quantise import Contribution, clip_factor
from common.secagg.state import Dealt, SiteRun, restore, save

RUN = "run-1"
PAYLOAD = Payload.of(b"the weights", b"the configuration")
T = TypeVar("T")


def refused(reason: str, call: Callable[..., Any], *arguments: Any, by: str | None = None) -> None:
    """Assert that a call is refused for this reason, naming this site where one is given."""
    with pytest.raises(SecAggError) as caught:
        call(*arguments)
    assert caught.value.reason == reason
    assert by is None or caught.value.site == by


def over_the_wire(record: T) -> T:
    """Return a record as the other side reads it."""
    return load(type(record), dump(record))


@dataclass
class Hospital:
    """One site: what it is, and the bytes that it has stored for the run."""

    member: site.Member
    stored: bytes

    @property
    def state(self) -> SiteRun:
        """What the site remembers."""
        return restore(self.stored)

    def deal(self, holders: Holders) -> Dealing:
        """Deal, and store the new state."""
        state, dealing = site.deal(self.state, self.member, over_the_wire(holders))
        self.stored = save(state)
        return over_the_wire(dealing)

    def mask(self, request: MaskRequest, contribution: Contribution, payload: Payload = PAYLOAD) -> Masked:
        """Review, mask, and store the new state."""
        request = over_the_wire(request)
        stored = site.review(self.state, self.member, request, payload)
        state, masked = site.mask(self.state, self.member, request, payload, contribution)
        assert stored is None or stored == masked
        self.stored = save(state)
        return over_the_wire(masked)

    def unmask(self, request: UnmaskRequest) -> UnmaskAnswer:
        """Answer, and store the new state."""
        state, answer = site.unmask(self.state, self.member, over_the_wire(request))
        self.stored = save(state)
        return over_the_wire(answer)


@dataclass
class Federation:
    """Some hospitals, all pinned and confirmed by each other, and an honest coordinator's steps."""

    size: int
    policy: Policy = field(default_factory=Policy)
    unconfirmed: tuple[str, ...] = ()
    hospitals: dict[str, Hospital] = field(init=False)
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.names = [f"h{number:03d}" for number in range(self.size)]
        identities = {name: Identity.make() for name in self.names}
        peers = {name: Peer(each.public, name not in self.unconfirmed) for name, each in identities.items()}
        self.roster = Roster(peers)
        self.hospitals = {}
        for name, identity in identities.items():
            member = site.Member(name, identity, self.roster, self.policy)
            self.hospitals[name] = Hospital(member, save(site.join(member, RUN, epoch=1)))

    def __getitem__(self, name: str) -> Hospital:
        return self.hospitals[name]

    def holders(
        self, slot: int = 1, names: Iterable[str] | None = None, numbers: Numbers | None = None
    ) -> Holders:
        """Return the request to deal to these sites; by default to all."""
        chosen = [self[name] for name in names or self.names]
        advertisements = [over_the_wire(site.advertise(each.state, each.member)) for each in chosen]
        for advertisement in advertisements:
            aggregator.check_advertisement(self.roster, RUN, advertisement)
        return aggregator.name_holders(RUN, slot, advertisements, numbers)

    def deal(self, holders: Holders, cohort: Iterable[str] | None = None) -> list[Dealing]:
        """Return the dealings of a cohort; by default of all holders."""
        dealings = [self[name].deal(holders) for name in cohort or holders.sites]
        for dealing in dealings:
            aggregator.check_dealing(self.roster, holders, dealing)
        return dealings

    def requests(
        self, holders: Holders, layout: Layout, cohort: Iterable[str] | None = None
    ) -> dict[str, MaskRequest]:
        """Return what an honest coordinator asks of every site of a cohort that has dealt."""
        return aggregator.mask_requests(holders, self.deal(holders, cohort), PAYLOAD, layout)

    def slot(self, holders: Holders, requests: Mapping[str, MaskRequest]) -> aggregator.Slot:
        """Return the coordinator's side of a slot."""
        return aggregator.Slot(self.roster, holders, next(iter(requests.values())).plan)

    def finish(self, slot: aggregator.Slot, answering: Iterable[str]) -> aggregator.Outcome:
        """Ask these sites to unmask and return the outcome."""
        request = slot.request()
        for name in answering:
            slot.answer(self[name].unmask(request))
        return slot.finish()


METRICS = (Metric("loss", 0, 50, 2**-20), Metric("cases", 0, 100_000))


def layout_for(sites: int, *, parameters: int = 40, max_weight: int = 1, bits: int = 16) -> Layout:
    """Return a small layout with two metrics; deltas of norm 2, coordinates within 0.5."""
    return Layout(parameters, sites, 2.0, 0.5, bits, max_weight, METRICS)


def contribution(layout: Layout, seed: int) -> Contribution:
    """Return what a site might say: some coordinates beyond the range, some norms beyond the largest."""
    chance = np.random.default_rng(seed)
    delta = chance.normal(scale=chance.choice([1e-4, 0.1, 0.6]), size=layout.parameters)
    return Contribution(
        delta.astype(np.float32),
        int(chance.integers(1, layout.max_weight + 1)),
        {"loss": float(chance.uniform(0, 50)), "cases": float(chance.integers(0, 100_000))},
        chance.bytes(32),
    )


def check_total(layout: Layout, told: Sequence[Contribution], outcome: aggregator.Outcome) -> None:
    """Assert that a slot gave the plain weighted mean and loss within their bounds, and exact counts."""
    total, weight = outcome.total, sum(each.weight for each in told)
    clipped = [
        np.clip(each.delta.astype(np.float64) * clip_factor(each.delta, layout.clip_norm), -0.5, 0.5)
        for each in told
    ]
    plain = sum(each.weight * delta for each, delta in zip(told, clipped, strict=True)) / weight
    assert total.weight == weight
    assert np.abs(total.mean - plain).max() <= layout.error_bound(len(told), weight)
    assert total.metrics["cases"] == sum(each.metrics["cases"] for each in told)
    assert abs(total.metrics["loss"] - sum(each.metrics["loss"] for each in told)) < len(told) * 2**-20


def masked_slot(
    federation: Federation, layout: Layout, slot: int = 1
) -> tuple[aggregator.Slot, dict[str, Masked], Holders]:
    """Return a slot in which everybody has dealt and masked, and nothing is added yet."""
    holders = federation.holders(slot)
    requests = federation.requests(holders, layout)
    masked = {
        name: federation[name].mask(request, contribution(layout, seed))
        for seed, (name, request) in enumerate(requests.items())
    }
    return federation.slot(holders, requests), masked, holders


def with_epoch(hospital: Hospital, epoch: int) -> None:
    """Give a hospital a new sealing key, as after a restored backup."""
    hospital.stored = save(site.rejoin(hospital.state, epoch))


def unchanged(
    hospital: Hospital, reason: str, call: Callable[..., Any], *arguments: Any, by: str | None = None
) -> None:
    """Assert that a hospital refuses, and that what it has stored is as it was."""
    before = hospital.stored
    refused(reason, call, *arguments, by=by)
    assert hospital.stored == before


def unmask_request(signatures: dict[str, bytes], dropped: tuple[str, ...], slot: int = 1) -> UnmaskRequest:
    """Return a request that names all who signed, but the dropped, survivors."""
    survivors = {name: signature for name, signature in signatures.items() if name not in dropped}
    return UnmaskRequest(RUN, slot, survivors, dropped)


def dealt_of(state: SiteRun) -> Dealt:
    """Return what a site has dealt and not yet masked in."""
    assert state.dealt is not None
    return state.dealt
