"""What the coordinator keeps of a run's keys and dealings, and which of them it takes from whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from common import wire
from common.errors import WireError
from common.secagg import site
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.messages import Advertisement, Holders
from common.secagg.reasons import Reason
from server.dealings import Dealings, Dealt
from server.standing import SHORTEST, Standing
from tests.common.secagg.federation import RUN, Federation, refused

FIVE = Federation(5).names


@pytest.fixture
def federation() -> Federation:
    """Return five hospitals that have begun a run."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return Federation(5)


def dealings_of(federation: Federation) -> Dealings:
    """Return a run of whose hospitals nothing is known yet."""
    identities = {name: peer.public for name, peer in federation.roster.peers.items()}
    return Dealings(RUN, identities, federation.roster, Standing(1))


def replying(answer: bytes) -> Message:
    """Return a site's reply."""
    asked = wire.ask_secured(1, wire.DEAL, wire.Secured(RUN), seconds=60.0)
    return wire.reply_secured(asked, wire.Secured(RUN, answer=answer))


def key_of(federation: Federation, name: str) -> Advertisement:
    """Return a hospital's key for the run."""
    return site.advertise(federation[name].state, federation[name].member)


def known(federation: Federation, names: Iterable[str] = FIVE) -> Dealings:
    """Return a run of which these hospitals have told their keys."""
    told = dealings_of(federation)
    for name in names:
        told.take(name, replying(dump(key_of(federation, name))))
    return told


def deal(federation: Federation, told: Dealings, dealt: Dealt, names: Iterable[str]) -> None:
    """Let hospitals deal for a slot."""
    for name in names:
        told.take(name, replying(dump(federation[name].deal(dealt.holders))))


def test_a_site_is_asked_for_its_key_and_with_that_known_for_a_dealing(federation: Federation) -> None:
    """At its node, for as long as the round waits; with every hospital's identity beside the first."""
    told = known(federation, FIVE[:4])
    dealt = told.open(FIVE)
    assert dealt.holders.sites == tuple(FIVE[:4])
    for name, slot, kind in [
        (FIVE[0], dealt, wire.DEAL),
        (FIVE[0], None, wire.ADVERTISE),
        (FIVE[4], dealt, wire.ADVERTISE),
        (FIVE[4], None, wire.ADVERTISE),
    ]:
        asked = told.ask(name, 7, slot, seconds=25.0)
        secured = wire.read_secured(asked)
        assert (asked.metadata.message_type, asked.metadata.dst_node_id) == (kind, 7)
        assert (asked.metadata.ttl, secured.run) == (25.0, RUN)
        assert secured.identities == (told.identities if kind == wire.ADVERTISE else {})
        if kind == wire.DEAL:
            assert read(Holders, secured.holders) == dealt.holders


def test_a_key_is_taken_from_its_site_for_this_run_alone(federation: Federation) -> None:
    """In another's name, for another run or unsigned it is refused, and not kept."""
    told, first = dealings_of(federation), FIVE[0]
    own = key_of(federation, first)
    with pytest.raises(WireError, match="another's name"):
        told.take(first, replying(dump(key_of(federation, FIVE[1]))))
    refused(Reason.WRONG_RUN, told.take, first, replying(dump(replace(own, run="run-2"))), by=first)
    refused(Reason.UNTRUSTED, told.take, first, replying(dump(replace(own, epoch=2))), by=first)
    assert not told.keys
    told.take(first, replying(dump(own)))
    assert told.keys == {first: own}


def test_a_dealing_is_taken_from_its_site_for_the_open_slot_alone(federation: Federation) -> None:
    """In another's name, for the slot before or unsigned it is refused, and not kept."""
    told, (first, second, *_) = known(federation), FIVE
    before = federation[first].deal(told.open(FIVE).holders)
    dealt = told.open(FIVE)
    refused(Reason.WRONG_RUN, told.take, first, replying(dump(before)), by=first)
    own = federation[first].deal(dealt.holders)
    with pytest.raises(WireError, match="another's name"):
        told.take(second, replying(dump(own)))
    unsigned = replace(own, manifest=replace(own.manifest, signature=bytes(64)))
    refused(Reason.UNTRUSTED, told.keep, first, unsigned, by=first)
    assert not dealt.dealings
    told.keep(first, own)
    assert dealt.dealings == {first: own}


def test_slots_ascend_and_have_those_with_a_key_for_holders_who_do_not_sit_out(
    federation: Federation,
) -> None:
    """Whoever sits out is back in its first slot after."""
    told = known(federation)
    assert told.slot == 0
    for slot in (1, 2):
        told.standing.judge(slot, FIVE, {FIVE[0]: "it does not deal"})
        holders = told.open(FIVE[:4]).holders
        assert (holders.run, holders.slot) == (RUN, slot)
        assert holders.sites == tuple(FIVE[:4] if slot == 1 else FIVE[1:4])
    out = [FIVE[0] not in told.open(FIVE).holders.sites for _ in range(SHORTEST + 1)]
    assert out == [True] * SHORTEST + [False]
    assert told.slot == SHORTEST + 3


def test_a_slot_is_ready_once_its_threshold_and_least_of_the_cohort_have_dealt(
    federation: Federation,
) -> None:
    """Of five four are the threshold; dealings of hospitals outside a cohort do not count for it."""
    told = known(federation)
    assert told.ready(FIVE, 0) is None
    dealt = told.open(FIVE)
    deal(federation, told, dealt, FIVE[:3])
    assert told.ready(FIVE, 0) is None
    deal(federation, told, dealt, FIVE[3:4])
    assert told.ready(FIVE, 0) is dealt
    assert told.ready(FIVE, 4) is dealt
    assert told.ready(FIVE, 5) is None
    assert told.ready(FIVE[1:], 0) is None
    assert [one.manifest.site for one in dealt.among(FIVE[1:])] == FIVE[1:4]
    deal(federation, told, dealt, FIVE[4:])
    assert told.ready(FIVE[1:], 0) is dealt
    told.open(FIVE)
    assert told.ready(FIVE, 0) is None


def test_a_slot_whose_holder_was_sent_out_since_is_not_ready(federation: Federation) -> None:
    """Shares at a hospital that takes no part would be missing; who was no holder makes no difference."""
    told = known(federation)
    dealt = told.open(FIVE[:4])
    deal(federation, told, dealt, FIVE[:4])
    told.standing.bar(FIVE[4], "it lied")
    assert told.ready(FIVE, 0) is dealt
    told.standing.bar(FIVE[3], "it lied")
    assert told.ready(FIVE, 0) is None


def test_a_key_that_is_forgotten_is_asked_for_again_and_another_taken(federation: Federation) -> None:
    """Who was never heard of can be forgotten as well."""
    told, (first, *_) = known(federation), FIVE
    dealt = told.open(FIVE)
    told.forget(first)
    told.forget("h999")
    assert sorted(told.keys) == FIVE[1:]
    assert told.ask(first, 7, dealt, seconds=25.0).metadata.message_type == wire.ADVERTISE
    renewed = site.advertise(site.rejoin(federation[first].state, 2), federation[first].member)
    told.take(first, replying(dump(renewed)))
    assert told.keys[first] == renewed
    assert told.open(FIVE).holders.advertisements[0] == renewed


def test_what_is_no_dealing_is_malformed(federation: Federation) -> None:
    """No bytes, bytes that are no record, and a key where a dealing was asked for."""
    told, (first, *_) = known(federation), FIVE
    told.open(FIVE)
    for answer in (b"", b"nothing", dump(key_of(federation, first))):
        refused(Reason.MALFORMED, told.take, first, replying(answer))
