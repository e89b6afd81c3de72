"""The protocol among honest parties: sums are right whoever drops, restarts, joins or lies about shares."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg import aggregator, vector
from common.secagg.masking import Mask
from common.secagg.numbers import neighbours
from common.secagg.quantise import Contribution
from common.secagg.vector import MaskedSum
from tests.common.secagg.federation import (
    PAYLOAD,
    Federation,
    check_total,
    contribution,
    layout_for,
    masked_slot,
    over_the_wire,
    refused,
    with_epoch,
)


@pytest.mark.parametrize("size", range(3, 11))
def test_every_survivor_set_gives_its_mean(size: int) -> None:
    """From 3 sites to 10: all sets of at least t survivors, the whole protocol, exactly t answers."""
    federation = Federation(size)
    layout = layout_for(size, max_weight=3)
    first, masked, holders = masked_slot(federation, layout)
    told = {name: contribution(layout, seed) for seed, name in enumerate(federation.names)}
    before = {name: hospital.stored for name, hospital in federation.hospitals.items()}
    for count in range(holders.threshold, size + 1):
        for survivors in combinations(federation.names, count):
            for name, stored in before.items():
                federation[name].stored = stored
            slot = aggregator.Slot(federation.roster, holders, first.plan)
            for name in reversed(survivors):
                slot.add(masked[name])
            outcome = federation.finish(slot, survivors[-holders.threshold :])
            assert (outcome.survivors, outcome.liars) == (survivors, ())
            assert set(outcome.dropped) == set(federation.names) - set(survivors)
            check_total(layout, [told[name] for name in survivors], outcome)


def test_thousands_of_random_cases() -> None:
    """3 to 12 sites, any layout, any survivors: masked, summed and unmasked, within the bound."""
    chance = np.random.default_rng(4)
    for case in range(2000):
        size = int(chance.integers(3, 13))
        layout = layout_for(
            size,
            parameters=int(chance.integers(1, 20)),
            max_weight=int(chance.integers(1, 20)),
            bits=int(chance.integers(4, 21)),
        )
        keys = [[chance.bytes(32) for _ in range(size)] for _ in range(size)]
        masks = [
            [Mask(keys[own][own])]
            + [Mask(keys[min(own, peer)][max(own, peer)], own > peer) for peer in range(size) if peer != own]
            for own in range(size)
        ]
        told = [contribution(layout, 100 * case + own) for own in range(size)]
        survivors = chance.permutation(size)[: chance.integers(1, size + 1)].tolist()
        total = MaskedSum(layout)
        for own in survivors:
            total.add(vector.mask(layout, told[own], masks[own]))
        alone = [masks[own][0] for own in survivors]
        loose = [
            mask
            for own in survivors
            for peer, mask in zip((p for p in range(size) if p != own), masks[own][1:], strict=True)
            if peer not in survivors
        ]
        opened = total.total([mask.opposite() for mask in (*alone, *loose)], len(survivors))
        outcome = aggregator.Outcome(opened, (), (), ())
        check_total(layout, [told[own] for own in survivors], outcome)


def test_a_hundred_sites_on_a_sparse_graph() -> None:
    """Of 100, 10 drop before masking and 9 after it, which leaves t answers; masks with 26 peers, not 99."""
    federation = Federation(100)
    holders, layout = federation.holders(), layout_for(100)
    assert (holders.threshold, holders.degree) == (81, 26)
    requests = federation.requests(holders, layout)
    slot, told = federation.slot(holders, requests), {}
    for seed, name in enumerate(federation.names):
        if seed % 10 != 3:
            told[name] = contribution(layout, seed)
            slot.add(federation[name].mask(requests[name], told[name]))
    assert len(neighbours(0, 100, holders.degree)) == 26
    outcome = federation.finish(slot, [name for place, name in enumerate(told) if place % 10])
    assert len(outcome.dropped) == 10
    check_total(layout, list(told.values()), outcome)


def test_rounds_follow_each_other_in_two_exchanges() -> None:
    """Dealing for the next slot rides on masking; who drops, joins late or rejoins costs only its own part.

    The fifth site masks in slot 1 and vanishes before slot 2, the sixth joins in slot 3, the fifth returns
    with a new key in slot 4.
    """
    federation = Federation(6)
    five, names = federation.names[:5], federation.names
    layout = layout_for(6)
    holders, dealings = federation.holders(1, five), None
    dealings = federation.deal(holders)
    plans: list[tuple[list[str], list[str]]] = [
        (five, five),
        (five[:4], [*five[:4], names[5]]),
        ([*five[:4], names[5]], names),
        (names, names),
    ]
    for slot_number, (masking, next_holders) in enumerate(plans, start=1):
        requests = aggregator.mask_requests(holders, dealings, PAYLOAD, layout)
        slot, told = federation.slot(holders, requests), list[Contribution]()
        if names[4] in next_holders and names[4] not in masking:
            with_epoch(federation[names[4]], 2)
        upcoming = federation.holders(slot_number + 1, next_holders)
        dealings = []
        for name in masking:
            told.append(contribution(layout, 10 * slot_number + len(told)))
            slot.add(federation[name].mask(requests[name], told[-1]))
            dealings.append(federation[name].deal(upcoming))
        dealings += [federation[name].deal(upcoming) for name in next_holders if name not in masking]
        check_total(layout, told, federation.finish(slot, masking))
        holders = upcoming


def test_a_late_dropout_costs_nothing() -> None:
    """A site that masked and then vanished is in the sum; its seed comes from the others."""
    federation, layout = Federation(4), layout_for(4)
    slot, masked, _ = masked_slot(federation, layout)
    for each in masked.values():
        slot.add(each)
    outcome = federation.finish(slot, federation.names[1:])
    assert outcome.survivors == tuple(federation.names)
    check_total(layout, [contribution(layout, seed) for seed in range(4)], outcome)


def test_three_sites_bear_no_dropout() -> None:
    """At n = 3, t = 3: the slot is abandoned, the next one works."""
    federation, layout = Federation(3), layout_for(3)
    slot, masked, _ = masked_slot(federation, layout)
    slot.add(masked["h000"])
    slot.add(masked["h001"])
    refused("too-few-survivors", slot.request)
    slot, masked, _ = masked_slot(federation, layout, slot=2)
    for each in masked.values():
        slot.add(each)
    refused("too-few-answers", federation.finish, slot, federation.names[:2])
    outcome = federation.finish(slot, federation.names)
    check_total(layout, [contribution(layout, seed) for seed in range(3)], outcome)
    refused("slot-closed", slot.finish)


@settings(max_examples=15)
@given(st.data())
def test_wrong_shares_are_found_and_named(data: st.DataObject) -> None:
    """With as many liars as answers to spare the sum is still right; up to half as many, all are named.

    Beyond that nobody is: here two liars who flip the same bit can agree on the right secret and make
    honest holders look wrong.
    """
    federation, layout = Federation(8), layout_for(8)
    slot, masked, holders = masked_slot(federation, layout)
    dropped = data.draw(st.sampled_from([None, *federation.names]))
    for name, each in masked.items():
        if name != dropped:
            slot.add(each)
    answering = [name for name in federation.names if name != dropped]
    spare = len(answering) - holders.threshold
    liars = data.draw(st.lists(st.sampled_from(answering), unique=True, max_size=spare))
    request = slot.request()
    for name in answering:
        answer = federation[name].unmask(request)
        if name in liars:
            seeds = {peer: bytes([share[0] ^ 1]) + share[1:] for peer, share in answer.seeds.items()}
            answer = replace(answer, seeds=seeds)
        slot.answer(over_the_wire(answer))
    outcome = slot.finish()
    assert outcome.liars == (tuple(sorted(liars)) if 2 * len(liars) <= spare else ())
    told = [contribution(layout, seed) for seed, name in enumerate(federation.names) if name != dropped]
    check_total(layout, told, outcome)


def test_too_many_wrong_shares_abort_by_name() -> None:
    """With t answers and one of them wrong no set of shares fits; two more mend it and name the liar."""
    federation, layout = Federation(7), layout_for(7)
    slot, masked, holders = masked_slot(federation, layout)
    for each in masked.values():
        slot.add(each)
    request = slot.request()
    answers = [federation[name].unmask(request) for name in federation.names]
    victim = federation.names[2]
    answers[0] = replace(answers[0], seeds=answers[0].seeds | {victim: bytes(32)})
    for answer in answers[: holders.threshold]:
        slot.answer(answer)
    refused("unrecoverable", slot.finish, by=victim)
    for answer in answers[holders.threshold :]:
        slot.answer(answer)
    outcome = slot.finish()
    assert outcome.liars == (federation.names[0],)
    check_total(layout, [contribution(layout, seed) for seed in range(7)], outcome)


def test_the_order_of_arrival_changes_nothing() -> None:
    """Whole numbers add up to the same bits in any order."""
    federation, layout = Federation(5), layout_for(5)
    first, masked, holders = masked_slot(federation, layout)
    means = set()
    for order in (federation.names, federation.names[::-1]):
        slot = aggregator.Slot(federation.roster, holders, first.plan)
        for name in order:
            slot.add(masked[name])
        means.add(federation.finish(slot, order).total.mean.tobytes())
    assert len(means) == 1
