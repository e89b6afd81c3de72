"""A rehearsal opens a public vector site by site, finds who sends another, and is never a real slot."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from common.secagg import aggregator, rehearsal, site
from common.secagg.encoding import digest, dump, load
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.layout import Layout, Metric
from common.secagg.masking import Keystream
from common.secagg.messages import PUBLIC, REHEARSAL, Holders, MaskRequest, Payload
from common.secagg.numbers import Policy
from common.secagg.quantise import Contribution, clip_factor
from common.secagg.rehearsal import Rehearsed
from common.secagg.state import SiteRun
from tests.common.secagg.federation import refused

LAYOUT = Layout(70_000, 4, 2.0, 0.5, metrics=(Metric("loss", 0, 10, 1e-3), Metric("within", 0, 1)))
DATA = Payload.of(b"the weights", b"the configuration")


@dataclass
class Slot:
    """Four sites of a run that have dealt for its first slot."""

    members: dict[str, site.Member]
    states: dict[str, SiteRun]
    holders: Holders
    requests: dict[str, MaskRequest]

    def rehearse(self, name: str) -> Rehearsed:
        """Return a site's answer, as it travels."""
        self.states[name], told = rehearsal.rehearse(
            self.states[name], self.members[name], self.requests[name]
        )
        return load(Rehearsed, dump(told))

    def check(self, told: Rehearsed) -> None:
        """Check an answer as the coordinator does."""
        roster = next(iter(self.members.values())).roster
        rehearsal.check(roster, self.holders, next(iter(self.requests.values())).plan, told)


def slot(run: str, payload: Payload) -> Slot:
    """Return a run's first slot about a payload."""
    identities = {name: Identity.make() for name in "abcd"}
    roster = Roster({name: Peer(each.public, confirmed=True) for name, each in identities.items()})
    members = {name: site.Member(name, each, roster, Policy()) for name, each in identities.items()}
    states = {name: site.join(member, run, epoch=1) for name, member in members.items()}
    keys = [site.advertise(states[name], member) for name, member in members.items()]
    holders = aggregator.name_holders(run, 1, keys)
    dealings = []
    for name, member in members.items():
        states[name], dealing = site.deal(states[name], member, holders)
        dealings.append(dealing)
    return Slot(members, states, holders, aggregator.mask_requests(holders, dealings, payload, LAYOUT))


def test_honest_vectors_are_what_everybody_computes() -> None:
    """All of four, of several pieces, nothing of it clipped."""
    public = slot(REHEARSAL + "1", PUBLIC)
    for name in public.members:
        public.check(public.rehearse(name))
    delta = rehearsal.public_contribution(public.requests["a"].plan, "a").delta
    assert clip_factor(delta, LAYOUT.clip_norm) == 1.0
    assert 0.4 < float(np.linalg.norm(delta)) < 1.0


def test_the_public_vector_is_the_plans_own_keystream_within_half_the_clip() -> None:
    """Uniform over [-reach, reach) with reach = clip / (2 sqrt(n)); metrics in the middle of their ranges."""
    plan = slot(REHEARSAL + "1", PUBLIC).requests["a"].plan
    mine, others = (rehearsal.public_contribution(plan, name) for name in "ab")
    drawn = np.empty(LAYOUT.parameters, "<u2")
    Keystream(digest("public vector", plan.digest())).read_into(drawn)
    reach = LAYOUT.clip_norm / math.sqrt(LAYOUT.parameters) / 2
    np.testing.assert_array_equal(mine.delta, ((drawn / 2**15 - 1) * reach).astype(np.float32))
    np.testing.assert_array_equal(mine.delta, others.delta)
    assert mine.metrics == {"loss": 5, "within": 0.5}
    assert mine.rounding_key == digest("public rounding", plan.digest(), "a") != others.rounding_key


@pytest.mark.parametrize("part", ["vector", "s", "b"])
def test_another_vector_or_other_secrets_are_refused_by_name(part: str) -> None:
    """One bit of any of them is enough."""
    public = slot(REHEARSAL + "1", PUBLIC)
    told = public.rehearse("b")
    record = told.masked if part == "vector" else told
    old: bytes = getattr(record, part)
    object.__setattr__(record, part, old[:-1] + bytes([old[-1] ^ 1]))
    refused("bad-rehearsal", public.check, told, by="b")


@pytest.mark.parametrize("part", ["s", "b"])
def test_who_masks_with_other_secrets_than_it_dealt_is_found(part: str) -> None:
    """Its vector is what those secrets give, and they are what it tells; but its shares are of others."""
    public = slot(REHEARSAL + "1", PUBLIC)
    state = public.states["b"]
    assert state.dealt is not None
    others: dict[str, Any] = {part: bytes(range(32))}
    public.states["b"] = replace(state, dealt=replace(state.dealt, **others))
    refused("bad-rehearsal", public.check, public.rehearse("b"), by="b")


def test_no_secrets_are_given_away_in_a_real_run() -> None:
    """Neither about a payload of data nor about the public one."""
    for payload in (DATA, PUBLIC):
        real = slot("run-1", payload)
        refused("not-a-rehearsal", real.rehearse, "a")


def test_no_data_are_masked_in_a_rehearsal_and_nothing_public_in_a_real_run() -> None:
    """Else a peer's secrets, given away in a rehearsal, would open the pairwise masks on a site's data."""
    data = Contribution(np.ones(70_000, np.float32), 1, {"loss": 1.0, "within": 1.0}, bytes(32))
    for run, payload in ((REHEARSAL + "1", DATA), ("run-1", PUBLIC)):
        mixed = slot(run, payload)
        state, member, request = mixed.states["a"], mixed.members["a"], mixed.requests["a"]
        refused("other-payload", site.review, state, member, request, payload)
        refused("other-payload", site.mask, state, member, request, payload, data)
    refused("other-payload", slot(REHEARSAL + "1", DATA).rehearse, "a")


def test_a_rehearsal_is_answered_once_and_never_unmasked() -> None:
    """The secrets are gone with the answer; there is no slot to close."""
    public = slot(REHEARSAL + "1", PUBLIC)
    told = public.rehearse("a")
    refused("not-dealt", public.rehearse, "a")
    asked = aggregator.Slot(public.members["a"].roster, public.holders, public.requests["a"].plan)
    for name in "bcd":
        asked.add(public.rehearse(name).masked)
    asked.add(told.masked)
    refused("slot-closed", site.unmask, public.states["a"], public.members["a"], asked.request())


def test_a_request_for_another_slot_is_refused_for_what_it_is() -> None:
    """Of another run, never dealt for, over, or without the shares of all: before anything is trained."""
    real = slot("run-1", DATA)
    member, state, request = real.members["a"], real.states["a"], real.requests["a"]

    def reviewed(now: SiteRun, **other: object) -> None:
        site.review(now, member, replace(request, plan=replace(request.plan, **other)), DATA)  # type: ignore[arg-type]

    refused("wrong-run", lambda: reviewed(state, run="run-2"))
    refused("not-dealt", lambda: reviewed(state, slot=2))
    fewer = replace(request, sealed={peer: share for peer, share in request.sealed.items() if peer != "b"})
    refused("shares-missing", site.review, state, member, fewer, DATA)
    later, _ = site.deal(state, member, replace(real.holders, slot=3))
    refused("old-slot", lambda: reviewed(later))
    refused("not-dealt", lambda: reviewed(later, slot=4))
    anew = site.rejoin(later, 2)
    refused("old-slot", lambda: reviewed(anew, slot=3))
    refused("not-dealt", lambda: reviewed(anew, slot=4))
