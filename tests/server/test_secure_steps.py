"""The coordinator's steps of a slot, one by one, with hospitals that train nothing."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message

from common import wire
from common.errors import DataError
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.identity import Peer, Roster
from common.secagg.messages import REHEARSAL, Dealing, Masked, UnmaskAnswer, UnmaskRequest
from common.secagg.reasons import Reason, refusal
from server.gather import NEXT_SLOT, OTHERS
from server.rehearsal import Rehearsal
from server.secure import GOODBYE
from tests.server.bare import BITS, EPISODES, PARAMETERS, RUN, TRAINING, Bare, Twist, bound, honest

GARBAGE = bytes(32)


def mean_of(grid: Bare, names: list[str]) -> torch.Tensor:
    """Return the mean of what these hospitals contribute."""
    return torch.stack([grid.delta(name) for name in names]).mean(0)


def altered(kinds: set[str], names: set[str], change: Callable[[Message], Message]) -> Twist:
    """Return what changes some hospitals' replies to some kinds of messages."""

    def twist(name: str, asked: Message, reply: Message) -> Message:
        is_meant = asked.metadata.message_type in kinds and name in names and not reply.has_error()
        return change(reply) if is_meant else reply

    return twist


def refusing(kinds: set[str], names: set[str], *words: str) -> Twist:
    """Return what makes some hospitals refuse, in the words that each has its turn for."""
    count = 0

    def twist(name: str, asked: Message, reply: Message) -> Message:
        nonlocal count
        if asked.metadata.message_type not in kinds or name not in names:
            return reply
        count += 1
        return wire.refuse(asked, wire.INSECURE, f"{name}: {words[(count - 1) % len(words)]}")

    return twist


def masking(reply: Message, vector: bytes) -> Message:
    """Put another masked vector into a reply."""
    reply.content["masked"] = ArrayRecord({"vector": Array("uint8", (len(vector),), wire.RAW, vector)})
    return reply


def spoilt(reply: Message) -> Message:
    """Put bytes into a reply that are nobody's vector."""
    return masking(reply, secrets.token_bytes(len(wire.read_masked(reply)[1])))


def answering(reply: Message, answer: bytes, part: str = "answer") -> Message:
    """Put another record into a reply."""
    reply.content.config_records["secured"][part] = answer
    return reply


def test_a_round_brings_the_mean_and_every_count_of_those_who_took_part() -> None:
    """Whoever is not asked is not in it; the next round has its dealings already."""
    grid = Bare(6)
    found = grid.round(grid.names[:5], grid.names[:5])
    assert found.mean is not None
    off = float((found.mean - mean_of(grid, grid.names[:5])).abs().max())
    assert off <= bound(grid.layouts()[0], 5)
    assert (found.sites, found.episodes, found.within) == (5, 5 * EPISODES, 5)
    assert found.loss_sum == pytest.approx(2.5, abs=1e-4)
    assert (found.missing, found.barred, found.remarks) == ({}, {}, [])
    assert grid.heard(wire.ADVERTISE) == grid.names
    for kind in (wire.DEAL, wire.TRAIN, wire.UNMASK):
        assert grid.heard(kind) == grid.names[:5]
    grid.arrived.clear()
    assert grid.round(grid.names[:5], []).sites == 5
    assert {message.metadata.message_type for _, message in grid.arrived} == {wire.TRAIN, wire.UNMASK}
    grid.arrived.clear()
    assert grid.round(grid.names[:5], []).sites == 5, "nobody was to come next, so they deal anew"
    assert grid.heard(wire.DEAL) == grid.names[:5]
    assert not grid.heard(wire.ADVERTISE)


def test_a_last_round_is_taken_again() -> None:
    """Who masked already sends the same again; where the slot was being opened, all deal for another."""
    grid = Bare(3)
    grid.lost = lambda kind, site, turn: (kind, site) == (wire.TRAIN, "h2")
    assert grid.round(then=[]).coming() == ["h2"]
    grid.lost = lambda kind, site, turn: (kind, site) == (wire.UNMASK, "h1")
    assert grid.round(then=[]).mean is None
    assert grid.heard(wire.DEAL) == grid.names
    grid.lost = lambda kind, site, turn: False
    assert grid.round(then=[]).sites == 3
    assert grid.heard(wire.DEAL) == [*grid.names, *grid.names]


def test_nobody_outside_a_later_round_is_asked_for_a_key() -> None:
    """All are when a run begins, so that who waits is known; then each when its turn comes."""
    grid = Bare(6, refusing({wire.ADVERTISE}, {"h5", "h4"}, "no"))
    assert grid.round(grid.names[:4], []).sites == 4
    grid.arrived.clear()
    grid.twist = honest
    found = grid.round(grid.names[:5], [])
    assert (found.sites, found.missing) == (5, {})
    assert grid.heard(wire.ADVERTISE) == ["h4"]


def test_the_end_of_a_run_goes_to_those_who_began_it() -> None:
    """For ten seconds; who told no key keeps nothing to erase."""
    grid = Bare(5, refusing({wire.ADVERTISE}, {"h1"}, "no"))
    assert grid.round().sites == 4
    grid.secure.finish(grid)
    ends = [message for _, message in grid.arrived if message.metadata.message_type == wire.FINISH]
    assert sorted(grid.heard(wire.FINISH)) == ["h0", "h2", "h3", "h4"]
    assert {message.metadata.ttl for message in ends} == {GOODBYE}
    assert {wire.read_secured(message).run for message in ends} == {RUN}


@pytest.mark.parametrize("clip", [0.0, 2.5])
def test_a_rounds_clip_bounds_what_is_masked_and_what_is_rehearsed(clip: float) -> None:
    """0 is as far as the training's own goes; as many holders as were asked."""
    spoil = altered({wire.TRAIN, wire.REHEARSE}, {"h1"}, spoilt)
    grid = Bare(5, spoil)
    grid.round(clip=clip)
    layouts = grid.layouts()
    assert len(layouts) == 10, "five train, and rehearse"
    assert {(one.clip_norm, one.parameters, one.sites, one.bits) for one in layouts} == {
        (clip or TRAINING.clip_norm, PARAMETERS, 5, BITS)
    }


def test_whom_a_sum_cannot_do_without() -> None:
    """With `least` all five one that is away stops a sum before it: nobody trains, and nobody opens."""
    grid = Bare(5, least=5)
    grid.lost = lambda kind, site, turn: (kind, site, turn) == (wire.DEAL, "h4", 1)
    found = grid.round()
    assert (found.mean, found.sites) == (None, 0)
    assert found.missing == {**dict.fromkeys(grid.names[:4], OTHERS), "h4": wire.ABSENT}
    assert not grid.heard(wire.TRAIN)
    grid.lost = lambda kind, site, turn: (kind, site) == (wire.TRAIN, "h4")
    found = grid.round()
    assert found.mean is None
    assert found.missing == {**dict.fromkeys(grid.names[:4], OTHERS), "h4": wire.ABSENT}
    assert grid.heard(wire.TRAIN) == grid.names[:4]
    assert not grid.heard(wire.UNMASK)
    grid.lost = lambda kind, site, turn: False
    assert grid.round().sites == 5


def test_with_least_four_four_of_five_are_enough() -> None:
    """Whether one is away when they deal or when they train."""
    for kind in (wire.DEAL, wire.TRAIN):
        grid = Bare(5, least=4)
        grid.lost = lambda what, site, turn, kind=kind: (what, site) == (kind, "h4")  # type: ignore[misc]
        assert grid.round().sites == 4


def test_whoever_trains_next_deals_meanwhile_or_tells_its_key_first() -> None:
    """Who told no key when the run began is not silent for ever: it is in the sum two rounds later."""
    grid = Bare(6)
    grid.lost = lambda kind, site, turn: (kind, site, turn) == (wire.ADVERTISE, "h5", 1)
    first, others = grid.names[:4], grid.names[2:]
    assert grid.round(first, others).missing == {}, "who is not in a round is not missing in it"
    assert grid.heard(wire.DEAL) == [*first, "h4"]
    assert "h5" in grid.heard(wire.ADVERTISE)
    asked = [message for _, message in grid.arrived if message.metadata.message_type != wire.TRAIN]
    assert {message.metadata.ttl for message in asked} == {TRAINING.round_timeout}
    found = grid.round(others, others)
    assert found.sites == 3
    assert found.missing == {"h5": NEXT_SLOT}
    assert found.coming() == ["h5"]
    assert grid.round(others, []).sites == 4


def test_who_sits_out_is_not_asked_to_deal_and_comes_back() -> None:
    """A hospital that deals and does not mask, twice: then four slots go by without it."""
    grid = Bare(5, refusing({wire.TRAIN}, {"h2"}, "busy"))
    assert [grid.round().missing for _ in range(3)] == [{"h2": "busy"}, {"h2": NEXT_SLOT}, {"h2": "busy"}]
    grid.twist = honest
    found = grid.round()
    assert found.barred == found.missing == {"h2": "sits out 4 slots: it dealt and did not mask"}
    grid.arrived.clear()
    assert grid.round().sites == 4
    assert "h2" not in {name for name, _ in grid.arrived}
    assert [grid.round().sites for _ in range(4)][-1] == 5


def test_who_made_a_new_key_is_asked_for_it_and_is_back() -> None:
    """It says that it is no holder with its present key; the old one is forgotten."""
    grid = Bare(5)
    assert grid.round().sites == 5
    grid.rejoin("h3")
    grid.arrived.clear()
    found = grid.round()
    assert found.sites == 4
    assert list(found.missing) == ["h3"]
    assert "h3" not in grid.heard(wire.ADVERTISE)
    sizes = [grid.round().sites for _ in range(4)]
    assert "h3" in grid.heard(wire.ADVERTISE)
    assert sizes[-1] == 5


def test_hospitals_that_wait_for_their_operators_stop_a_run_as_it_begins() -> None:
    """They are named, all of them; later one that waits is missing like any other."""
    words = str(refusal(Reason.WAITS_FOR_ALLOW))
    grid = Bare(6, refusing({wire.ADVERTISE}, {"h1", "h4"}, words))
    with pytest.raises(DataError, match=re.escape(f"h1, h4: {words} Resume")):
        grid.round(grid.names[:5])
    assert not grid.heard(wire.DEAL)
    grid = Bare(5, refusing({wire.TRAIN}, {"h1"}, words))
    found = grid.round()
    assert (found.sites, found.missing, found.refusing()) == (4, {"h1": words}, ["h1"])


def test_who_is_away_before_training_is_not_marked_and_who_refuses_is() -> None:
    """Of three hospitals one does not deal: nothing is lost by one that can be back in a moment."""
    grid = Bare(3)
    grid.lost = lambda kind, site, turn: (kind, site) == (wire.DEAL, "h2")
    rounds = [grid.round() for _ in range(4)]
    assert [one.barred for one in rounds] == [{}] * 4
    assert {one.missing["h2"] for one in rounds} == {wire.ABSENT}
    grid = Bare(3, refusing({wire.DEAL}, {"h2"}, "no"))
    rounds = [grid.round() for _ in range(3)]
    assert rounds[0].missing == {"h0": OTHERS, "h1": OTHERS, "h2": "no"}
    assert [one.barred for one in rounds[:2]] == [{}] * 2
    assert rounds[2].barred == {"h2": "sits out 4 slots: it does not deal"}


class Clock:
    """Time that goes by in sleep alone, `passed` seconds of it."""

    passed = 0.0

    def monotonic(self) -> float:
        """Return the seconds that were slept."""
        return self.passed

    def sleep(self, seconds: float) -> None:
        """Let time go by; more than asked, as every sleep does."""
        self.passed += seconds + 1e-6


def test_who_never_answers_is_waited_for_as_long_as_a_round_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes for it, not even from the link: it is silent, and the others have their sum."""

    class Mute(Bare):
        mute = False

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = super().pull_messages(message_ids)
            return [one for one in replies if not self.mute or one.metadata.src_node_id != self.nodes["h3"]]

    clock = Clock()
    monkeypatch.setattr("server.exchange.time", clock)
    grid = Mute(5)
    assert grid.round().sites == 5
    assert clock.passed == 0
    grid.mute = True
    found = grid.round()
    assert (found.sites, found.missing) == (4, {"h3": wire.SILENT}), "it dealt, and its vector does not come"
    assert clock.passed == pytest.approx(TRAINING.round_timeout, abs=0.1)
    clock.passed = 0
    grid = Mute(5)
    grid.mute = True
    found = grid.round(then=[])
    assert (found.sites, found.missing) == (4, {"h3": wire.SILENT}), "its key does not come"
    assert clock.passed == pytest.approx(TRAINING.round_timeout, abs=0.1)


def test_a_slot_without_enough_answers_is_given_up_and_says_whose() -> None:
    """Two of five do not unmask, four must; in the next round there is a sum."""
    grid = Bare(5, refusing({wire.UNMASK}, {"h3", "h1"}, "no"))
    found = grid.round()
    words = f"the slot is given up: {refusal(Reason.TOO_FEW_ANSWERS, 'h1, h3')}"
    assert found.missing == dict.fromkeys(grid.names, words)
    assert (found.mean, found.sites, found.remarks) == (None, 0, [])
    grid.twist = honest
    assert grid.round().sites == 5


def test_an_answer_in_anothers_name_is_none_and_the_sum_stands() -> None:
    """Who gives it is marked as mute: at the second time it sits out."""

    def as_h0(reply: Message) -> Message:
        own = read(UnmaskAnswer, wire.read_secured(reply).answer)
        return answering(reply, dump(replace(own, site="h0")))

    grid = Bare(5, altered({wire.UNMASK}, {"h2"}, as_h0))
    rounds = [grid.round() for _ in range(3)]
    assert [one.sites for one in rounds] == [5, 5, 4]
    assert rounds[2].barred == {"h2": "sits out 4 slots: it masked and did not unmask"}


def lying(reply: Message, about: str) -> Message:
    """Return a survivor's answer with another share for a hospital's seed."""
    own = read(UnmaskAnswer, wire.read_secured(reply).answer)
    return answering(reply, dump(replace(own, seeds={**own.seeds, about: GARBAGE})))


def test_one_wrong_share_leaves_the_sum_as_it_is() -> None:
    """Of five the four others' shares are enough to see which it was."""
    grid = Bare(5, altered({wire.UNMASK}, {"h2"}, lambda reply: lying(reply, "h0")))
    found = grid.round()
    assert found.mean is not None
    assert float((found.mean - mean_of(grid, grid.names)).abs().max()) <= bound(grid.layouts()[0], 5)
    assert (found.sites, found.missing) == (5, {})


def test_whose_shares_give_no_secret_takes_no_more_part() -> None:
    """The slot is given up and names it; the others go on, and nobody rehearses."""
    grid = Bare(5, altered({wire.UNMASK}, {"h1", "h2", "h3"}, lambda reply: lying(reply, "h0")))
    found = grid.round()
    words = f"the slot is given up: {refusal(Reason.UNRECOVERABLE, 'h0')}"
    assert found.missing == dict.fromkeys(grid.names, words)
    assert not grid.heard(wire.REHEARSE)
    grid.twist = honest
    found = grid.round()
    assert found.barred == {"h0": "takes no more part: what it dealt gives no secret"}
    assert found.missing == found.barred
    assert found.sites == 4


def test_an_accuser_is_not_marked_and_of_two_accusers_the_accused_is_out() -> None:
    """Who cannot open another's shares does not mask, each time: the other is at fault, or it is one liar."""
    words = str(refusal(Reason.BAD_SHARE, "h2"))
    grid = Bare(5, refusing({wire.TRAIN}, {"h1"}, words))
    rounds = [grid.round() for _ in range(6)]
    assert [one.sites for one in rounds] == [4] * 6
    assert [one.missing for one in rounds] == [{"h1": words}, {"h1": NEXT_SLOT}] * 3
    assert rounds[-1].barred == {}
    grid = Bare(6, refusing({wire.TRAIN}, {"h1", "h3"}, words))
    assert "h2" not in grid.round().barred
    grid.twist = honest
    assert grid.round().barred == {"h2": "takes no more part: what it seals cannot be opened"}


@pytest.mark.parametrize("accused", [("h9",), ("h2", "h3")], ids=["a stranger", "too many"])
def test_who_accuses_a_stranger_or_too_many_is_marked(accused: tuple[str, ...]) -> None:
    """As if it had been mute: at most one of the others lies."""
    words = [str(refusal(Reason.BAD_SHARE, name)) for name in accused]
    grid = Bare(5, refusing({wire.TRAIN}, {"h1"}, *words))
    barred = [list(grid.round().barred) for _ in range(8)]
    assert ["h1"] in barred


def test_the_vectors_that_spoilt_a_sum_are_found_and_left_out() -> None:
    """Two at once; who was sent out before does not rehearse."""
    grid = Bare(7, altered({wire.TRAIN, wire.REHEARSE}, {"h5", "h1"}, spoilt))
    grid.secure._standing.bar("h3", "it was proved wrong")
    found = grid.round()
    assert found.mean is None
    assert found.remarks == ["the sum was impossible; a rehearsal on a public vector found h1, h5"]
    assert sorted(grid.heard(wire.REHEARSE)) == ["h0", "h1", "h2", "h4", "h5", "h6"]
    given_up = f"the slot is given up: {refusal(Reason.IMPOSSIBLE_SUM)}"
    others = {name: given_up for name in grid.names if name != "h3"}
    assert found.missing == {**others, "h3": "takes no more part: it was proved wrong"}
    words = "takes no more part: it masks another vector than it should, as a rehearsal shows"
    barred = grid.round().barred
    assert {name: barred[name] for name in ("h1", "h5")} == {"h1": words, "h5": words}


def test_who_masks_and_deals_wrongly_is_in_the_sum_and_not_missing() -> None:
    """Its vector counts; what it dealt for the next slot does not, so that it is asked again."""

    def misdeal(reply: Message) -> Message:
        dealing = read(Dealing, wire.read_secured(reply).dealing)
        return answering(reply, dump(replace(dealing, sealed={})), "dealing")

    grid = Bare(5, altered({wire.TRAIN}, {"h4"}, misdeal))
    found = grid.round()
    assert (found.sites, found.missing) == (5, {})
    grid.twist = honest
    assert grid.round().missing == {"h4": NEXT_SLOT}
    assert grid.round().sites == 5


def test_a_vector_that_is_none_leaves_its_hospital_out() -> None:
    """No vector, one that is too short, and one of another slot."""

    def changed(name: str, asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type != wire.TRAIN:
            return reply
        told, vector = wire.read_masked(reply)
        if name == "h0":
            return wire.reply_secured(asked, told)
        if name == "h1":
            return masking(reply, vector[:-1])
        if name == "h2":
            return answering(reply, dump(replace(read(Masked, told.answer), slot=2)))
        return reply

    grid = Bare(10, changed)
    found = grid.round()
    assert found.sites == 7
    assert found.missing["h0"] == "a masked vector was asked for, and none came."
    assert found.missing["h1"] == str(refusal(Reason.WRONG_LENGTH, "h1"))
    assert found.missing["h2"] == str(refusal(Reason.WRONG_RUN, "h2"))


def rehearsal_of(grid: Bare, names: list[str] | None = None) -> Rehearsal:
    """Return a rehearsal of hospitals, by default of all."""
    roster = Roster({name: Peer(key) for name, key in grid.keys.items()})
    sites = {name: grid.nodes[name] for name in names or grid.names}
    grid.round()
    layout = grid.layouts()[0]
    grid.arrived.clear()
    return Rehearsal(grid, sites, grid.keys, roster, layout, seconds=20.0)


def test_a_rehearsal_goes_from_keys_to_the_end_of_its_own_run() -> None:
    """Under an id that no run of sums has; everybody who told a key is told of the end."""
    grid = Bare(5)
    rehearsal = rehearsal_of(grid)
    assert rehearsal.find_broken() == []
    for kind in (wire.ADVERTISE, wire.DEAL, wire.REHEARSE, wire.FINISH):
        assert grid.heard(kind) == grid.names
    runs = {wire.read_secured(message).run for _, message in grid.arrived}
    assert runs == {rehearsal.run}
    assert re.fullmatch(f"{REHEARSAL}[0-9a-f]{{32}}", rehearsal.run)
    assert {message.metadata.ttl for _, message in grid.arrived} == {20.0}
    assert Rehearsal(grid, {}, {}, Roster({}), rehearsal.layout, 1.0).run != rehearsal.run


def test_a_rehearsal_finds_who_masks_wrongly_and_nobody_who_is_away_or_refuses() -> None:
    """In order; a hospital that answers in another's name is not taken for it."""

    def changed(name: str, asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type != wire.REHEARSE:
            return reply
        if name in {"h6", "h0"}:
            return spoilt(reply)
        if name == "h1":
            return wire.refuse(asked, wire.INSECURE, "h1: no")
        if name == "h2":
            return answering(spoilt(reply), own["h0"])
        return reply

    own: dict[str, bytes] = {}

    def noting(name: str, asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type == wire.REHEARSE:
            own[name] = wire.read_secured(reply).answer
        return changed(name, asked, reply)

    grid = Bare(7)
    rehearsal = rehearsal_of(grid)
    grid.twist = noting
    assert rehearsal.find_broken() == ["h0", "h6"]
    assert grid.heard(wire.FINISH) == grid.names


def test_a_rehearsal_of_too_few_finds_nobody_and_ends() -> None:
    """Who told a key forgets it all the same."""
    grid = Bare(5)
    rehearsal = rehearsal_of(grid)
    grid.twist = refusing({wire.DEAL}, {"h0", "h1", "h2"}, "no")
    assert rehearsal.find_broken() == []
    assert not grid.heard(wire.REHEARSE)
    assert grid.heard(wire.FINISH) == grid.names
    grid.arrived.clear()
    grid.twist = refusing({wire.ADVERTISE}, {"h1"}, "no")
    again = replace(rehearsal, run=f"{REHEARSAL}2")
    assert again.find_broken() == []
    assert grid.heard(wire.REHEARSE) == grid.heard(wire.FINISH) == ["h0", "h2", "h3", "h4"]


def test_survivors_are_told_who_masked_and_who_did_not() -> None:
    """Whoever dealt is one or the other."""
    grid = Bare(5)
    grid.lost = lambda kind, site, turn: (kind, site) == (wire.TRAIN, "h1")
    assert grid.round().sites == 4
    asked = {name: message for name, message in grid.arrived if message.metadata.message_type == wire.UNMASK}
    assert sorted(asked) == ["h0", "h2", "h3", "h4"]
    for message in asked.values():
        request = read(UnmaskRequest, wire.read_secured(message).request)
        assert (sorted(request.survivors), request.dropped) == (["h0", "h2", "h3", "h4"], ("h1",))
