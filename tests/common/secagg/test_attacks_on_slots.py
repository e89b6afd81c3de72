"""A malicious coordinator that replays, repeats and races: a slot is masked in once and answered once."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from common.errors import SecAggError
from common.secagg.messages import (
    Masked,
    Payload,
)
from common.secagg.state import finished, restore, save
from tests.common.secagg.federation import (
    PAYLOAD,
    RUN,
    Federation,
    contribution,
    dealt_of,
    layout_for,
    masked_slot,
    refused,
    unchanged,
    unmask_request,
    with_epoch,
)

VICTIM, SIBLING, THIRD = "h000", "h001", "h002"


@pytest.fixture
def federation() -> Federation:
    """Five hospitals that trust each other's keys."""
    return Federation(5)


def test_replayed_slots(federation: Federation) -> None:
    """No slot is dealt for or masked in again once a higher one was, nor under another holder set."""
    layout, victim = layout_for(5), federation[VICTIM]
    first_holders = federation.holders(1)
    first = federation.requests(first_holders, layout)
    assert victim.deal(first_holders).manifest == first[VICTIM].plan.manifests[0]
    unchanged(victim, "slot-used", victim.deal, federation.holders(1, federation.names[:4]))
    requests = federation.requests(federation.holders(5), layout)
    unchanged(victim, "old-slot", victim.deal, federation.holders(4))
    unchanged(victim, "old-slot", victim.mask, first[VICTIM], contribution(layout, 0))
    victim.mask(requests[VICTIM], contribution(layout, 0))
    unchanged(victim, "old-slot", victim.deal, federation.holders(5))
    unchanged(victim, "old-slot", victim.mask, first[VICTIM], contribution(layout, 0))
    elsewhere = replace(requests[VICTIM], plan=replace(requests[VICTIM].plan, run="run-0"))
    unchanged(victim, "wrong-run", victim.mask, elsewhere, contribution(layout, 0))
    ahead = replace(requests[VICTIM], plan=replace(requests[VICTIM].plan, slot=6))
    unchanged(victim, "not-dealt", victim.mask, ahead, contribution(layout, 0))


def test_a_slot_asked_twice(federation: Federation) -> None:
    """The same plan gets the stored bytes, whatever was trained since; other weights get nothing."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(), layout)
    masked = victim.mask(requests[VICTIM], contribution(layout, 0))
    assert victim.mask(requests[VICTIM], contribution(layout, 1)) == masked
    other = Payload.of(b"other weights", b"the configuration")
    lie = replace(requests[VICTIM], plan=replace(requests[VICTIM].plan, payload=other))
    before = victim.stored
    refused("slot-used", victim.mask, lie, contribution(layout, 0), other)
    assert victim.stored == before


def test_two_requests_race_for_one_mask(federation: Federation) -> None:
    """Of two plans for one slot that arrive together exactly one is masked: transactions are exclusive."""
    layout = layout_for(5)
    request = federation.requests(federation.holders(), layout)[VICTIM]
    payloads = [PAYLOAD, Payload.of(b"other weights", b"the configuration")]
    lies = [replace(request, plan=replace(request.plan, payload=payload)) for payload in payloads]

    def ask(place: int) -> Masked:
        return federation[VICTIM].mask(lies[place], contribution(layout, 0), payloads[place])

    assert _race(ask, 2) == ["SecAggError:slot-used", "masked"]


def test_two_requests_race_for_one_unmasking(federation: Federation) -> None:
    """Of two survivor lists that arrive together exactly one is answered, never both."""
    _, masked, _ = masked_slot(federation, layout_for(5))
    signatures = {name: each.signature for name, each in masked.items()}
    requests = [unmask_request(signatures, dropped) for dropped in ((THIRD,), ())]
    outcomes = _race(lambda place: federation[VICTIM].unmask(requests[place]), 2)
    assert outcomes == ["SecAggError:answered-otherwise", "masked"]


def _race(ask: object, contenders: int) -> list[str]:
    """Return what each of some threads got, sorted; a lock stands for the store's exclusive transaction."""
    transaction, start, outcomes = threading.Lock(), threading.Barrier(contenders), list[str]()

    def contend(place: int) -> None:
        start.wait()
        with transaction:
            try:
                ask(place)  # type: ignore[operator]
                outcomes.append("masked")
            except SecAggError as error:
                outcomes.append(f"SecAggError:{error.reason}")

    threads = [threading.Thread(target=contend, args=(place,)) for place in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes)


def test_a_site_that_came_back_from_a_backup(federation: Federation) -> None:
    """With its new key it gives up every slot, dealt for or masked in, and keeps no secret of them."""
    layout, victim = layout_for(5), federation[VICTIM]
    requests = federation.requests(federation.holders(1), layout)
    masked = {
        name: federation[name].mask(request, contribution(layout, 0)) for name, request in requests.items()
    }
    signatures = {name: each.signature for name, each in masked.items()}
    federation.requests(federation.holders(2), layout)
    dealt, old = dealt_of(victim.state), victim.state.c
    with_epoch(victim, 2)
    assert not any(secret in victim.stored for secret in (dealt.s, dealt.b, old))
    unchanged(victim, "slot-closed", victim.unmask, unmask_request(signatures, ()))
    unchanged(victim, "old-slot", victim.deal, federation.holders(2))
    victim.deal(federation.holders(3))


def test_a_finished_run_is_refused_for_ever(federation: Federation) -> None:
    """What is stored at the end says only that the run is over, and holds no key."""
    victim = federation[VICTIM]
    secret = victim.state.c
    victim.stored = save(finished(RUN, victim.stored))
    assert secret not in victim.stored
    refused("finished-run", restore, victim.stored)
    refused("finished-run", victim.deal, federation.holders(1, federation.names[1:]))
    refused("other-version", restore, victim.stored[:-1])
