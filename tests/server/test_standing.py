"""Who sits out for stopping sums, for how long, and that nobody is sent out by what others say of it."""

from __future__ import annotations

import pytest

from server.standing import LONGEST, Standing

SITES = [f"site-{number}" for number in range(1, 6)]
MUTE = {"site-1": "it masked and did not unmask"}


def play(standing: Standing, misses: list[bool]) -> int:
    """Play slots in which site-1, where it may take part, misses or not; return the slots that it missed."""
    missed = 0
    for slot, miss in enumerate(misses, start=1):
        inside = "site-1" not in standing.out(slot)
        asked = SITES if inside else SITES[1:]
        standing.judge(slot, asked, MUTE if miss and inside else {})
        missed += miss and inside
    return missed


def test_who_is_always_mute_costs_few_slots() -> None:
    """Two, and one when it is back after each of 4, 8, 16, 32, 32, ...: slots 7, 16, 33, 66, ...."""
    assert play(Standing(1), [True] * 1000) <= 2 + 3 + (1000 - 33) / (LONGEST + 1)


def test_a_bad_line_is_borne_and_an_outage_is_forgiven() -> None:
    """Missing every third slot sends nobody out; after ten missed slots a site is back within 17."""
    assert play(Standing(1), [slot % 3 == 0 for slot in range(300)]) == 100
    standing = Standing(1)
    play(standing, [True] * 10)
    assert "site-1" in standing.out(11)
    assert not standing.out(17)
    play(standing, [False] * 10)
    assert not standing.out(18)


def test_where_most_miss_a_slot_none_is_marked() -> None:
    """Three of five at once: that is a line of the coordinator's own, however often."""
    standing = Standing(1)
    for slot in range(1, 20):
        standing.judge(slot, SITES, dict.fromkeys(SITES[:3], "it does not deal"))
    assert not standing.out(20)


def test_one_accuser_expels_nobody_and_two_do() -> None:
    """Of up to one liar each: the accusation of one site alone is believed, but has no consequence."""
    standing = Standing(1)
    assert all(standing.accuse("site-1", "site-2") for _ in range(20))
    assert not standing.out(1)
    assert standing.accuse("site-3", "site-2")
    assert list(standing.out(10**9)) == ["site-2"]


def test_who_accuses_more_than_may_lie_is_not_believed() -> None:
    """At most one of the others lies: who cannot open the shares of two is itself at fault."""
    standing = Standing(1)
    assert standing.accuse("site-1", "site-2")
    assert not standing.accuse("site-1", "site-3")
    assert not standing.out(1)


@pytest.mark.parametrize("slots", [1, 5])
def test_who_is_barred_stays_so(slots: int) -> None:
    """What is proved needs no second proof, and no good conduct mends it."""
    standing = Standing(1)
    standing.bar("site-1", "what it seals cannot be opened")
    for slot in range(slots):
        standing.judge(slot, SITES, MUTE)
    assert standing.out(10**9) == {"site-1": "takes no more part: what it seals cannot be opened"}
