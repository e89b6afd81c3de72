"""Pinned hospitals: what a message may change, what it takes to confirm one, and who vouches for whom."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import time
from pathlib import Path

import pytest

from client.hours import opens
from client.peers import MOST_VOUCHERS, Peers, peers_of
from client.pinboard import MOST_PEERS, Pinned, from_toml, to_toml
from common.errors import ConfigError, EnrolmentError, SecAggError, WireError
from common.identity import fingerprint
from common.secagg.identity import VOUCHERS, Identity, Peer
from common.secagg.vouching import DAY, LASTS, PURPOSE, Vouch, vouch, vouchers, withdraw

OWN, NORTH, SOUTH, EAST, WEST, EVE = (Identity.make() for _ in range(6))
NOW = 1_800_000_000
TOLD = {
    "own": OWN.public,
    "north": NORTH.public,
    "south": SOUTH.public,
    "east": EAST.public,
    "west": WEST.public,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a peers.toml that knows one hospital, confirmed."""
    path = tmp_path / "peers.toml"
    path.write_text(to_toml(Pinned({"north": Peer(NORTH.public, confirmed=True)})))
    return path


def at(path: Path, now: float = NOW) -> Peers:
    """Return what stands in the file, read at this time."""
    return replace(peers_of(path), clock=lambda: now)


def word(identity: Identity, voucher: str, subject: str, key: bytes, now: int = NOW) -> Vouch:
    """Return a hospital's signed word, by telephone, in the federation `lung`."""
    return vouch(identity, "lung", voucher, subject, key, "telephone", now)


def signed(identity: Identity, one: Vouch) -> Vouch:
    """Return what this hospital would have signed."""
    return replace(one, signature=identity.sign(PURPOSE, *one.signed()))


def strangers(peers: Peers) -> int:
    """Return how many hospitals must be counted as colluders."""
    return peers.roster("own", OWN, "lung").unconfirmed(peers.pinned)


def test_what_the_coordinator_names_is_pinned_and_counts_for_nothing(path: Path) -> None:
    """A new hospital is unconfirmed; another key for a confirmed one is pending, and again if rejected."""
    told = {"north": NORTH.public, "south": SOUTH.public}
    learnt = peers_of(path).learn("own", told)
    assert learnt.pinned == peers_of(path).pinned
    assert learnt.pinned == {"north": Peer(NORTH.public, confirmed=True), "south": Peer(SOUTH.public)}
    for _ in range(2):
        told = {"north": EVE.public, "south": WEST.public}
        peers_of(path).learn("own", told)
        pinned = peers_of(path).pinned
        assert pinned["north"] == Peer(NORTH.public, confirmed=True, pending=EVE.public)
        assert pinned["south"] == Peer(SOUTH.public, pending=WEST.public)
        peers_of(path).reject("north")
        assert peers_of(path).pinned["north"] == Peer(NORTH.public, confirmed=True)


def test_one_call_confirms_one_hospital(path: Path) -> None:
    """Inventions that the coordinator lists beside it stay what they are."""
    peers = peers_of(path).learn("own", TOLD | {"invented": EVE.public})
    peers.confirm("own", OWN, {"south": f" {fingerprint(SOUTH.public).upper()} "})
    assert {name for name, peer in peers_of(path).pinned.items() if peer.confirmed} == {"north", "south"}


def test_of_several_fingerprints_one_wrong_confirms_nobody(path: Path) -> None:
    """And the error names whose it is."""
    before = peers_of(path).learn("own", TOLD)
    read_out = {"south": fingerprint(SOUTH.public), "east": fingerprint(EVE.public)}
    with pytest.raises(SecAggError, match="east: the fingerprint is not of the key"):
        before.confirm("own", OWN, read_out)
    assert peers_of(path).pinned == before.pinned
    with pytest.raises(SecAggError, match="its key is confirmed under another name"):
        before.learn("own", {"mirror": OWN.public}).confirm("own", OWN, {"mirror": fingerprint(OWN.public)})


def test_names_without_end_make_nothing_grow(path: Path) -> None:
    """Eight messages with fresh names: the file keeps its bound, and who is confirmed is never forgotten."""
    longest = 0
    for message in range(8):
        told = {f"h-{message}-{number}": Identity.make().public for number in range(MOST_PEERS)}
        learnt = peers_of(path).learn("own", told)
        assert len(peers_of(path).pinned) == MOST_PEERS
        assert len(learnt.pinned) == MOST_PEERS - 1, "one place is a confirmed hospital's"
        longest = max(longest, path.stat().st_size)
    assert peers_of(path).pinned["north"].confirmed
    assert longest < 40_000


@pytest.mark.parametrize(
    "told",
    [{"south": SOUTH.public, "mirror": SOUTH.public}, {"south": SOUTH.public, "South": EAST.public}],
)
def test_no_hospital_is_named_twice(path: Path, told: dict[str, bytes]) -> None:
    """Neither by one key nor by one name in another case."""
    with pytest.raises(WireError, match="twice"):
        peers_of(path).learn("own", told)
    assert peers_of(path).pinned.keys() == {"north"}


def test_messages_and_the_operator_do_not_undo_each_other(path: Path) -> None:
    """Thirty-two learn new names while as many are confirmed, each from what it read long before."""
    keys = {f"h{number}": Identity.make().public for number in range(32)}
    early = peers_of(path).learn("own", keys)

    def act(number: int) -> None:
        if number % 2:
            early.learn("own", {f"new-{number}": Identity.make().public})
        else:
            name = f"h{number // 2}"
            early.confirm("own", OWN, {name: fingerprint(keys[name])})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(64)))
    pinned = peers_of(path).pinned
    assert all(pinned[name].confirmed for name in keys)
    assert len(pinned) == 1 + 32 + 32


@pytest.fixture
def two(path: Path) -> Peers:
    """Return pins of which `north` and `south` are confirmed."""
    peers = at(path).learn("own", TOLD)
    return peers.confirm("own", OWN, {"south": fingerprint(SOUTH.public)})


BOTH = [word(NORTH, "north", "east", EAST.public), word(SOUTH, "south", "east", EAST.public)]


def test_enough_confirmed_vouchers_make_a_stranger_count(two: Peers) -> None:
    """One fewer does not; what is kept survives in the file, and ends with its expiry."""
    assert VOUCHERS == len(BOTH) == 2
    assert strangers(two.learn("own", TOLD, BOTH[:1], "lung")) == 2
    assert strangers(two.learn("own", TOLD, BOTH, "lung")) == 1
    assert strangers(at(two.path)) == 1
    assert at(two.path).roster("own", OWN, "lung").peers["east"].vouchers == ("north", "south")
    assert strangers(at(two.path, NOW + LASTS)) == 2


@pytest.mark.parametrize(
    "second",
    [
        word(SOUTH, "south", "west", EAST.public),
        word(SOUTH, "south", "east", EVE.public),
        word(EVE, "south", "east", EAST.public),
        word(WEST, "west", "east", EAST.public),
        word(EAST, "east", "east", EAST.public),
        word(NORTH, "north", "east", EAST.public, NOW + 1),
        replace(BOTH[1], expires=NOW + 2),
        signed(SOUTH, replace(BOTH[1], expires=NOW + LASTS + 1)),
        signed(SOUTH, replace(BOTH[1], compared="by mail")),
        signed(SOUTH, replace(BOTH[1], voucher_key=EVE.public)),
        replace(BOTH[1], signature=bytes(64)),
        vouch(SOUTH, "other", "south", "east", EAST.public, "telephone", NOW),
        word(SOUTH, "south", "east", EAST.public, NOW - LASTS),
        word(SOUTH, "south", "east", EAST.public, NOW + 2 * DAY),
    ],
    ids=[
        "another subject", "another key", "another's signature", "a voucher that nobody confirmed", "itself",
        "the same voucher twice", "altered", "a longer life", "by mail", "unlike its key", "unsigned",
        "another federation", "expired", "from the future",
    ],
)  # fmt: skip
def test_what_is_no_second_voucher(two: Peers, second: Vouch) -> None:
    """One true word and this beside it are not enough."""
    assert strangers(two.learn("own", TOLD, [BOTH[0], second], "lung")) == 2


def test_a_word_in_another_hospitals_name_is_not_even_kept(two: Peers) -> None:
    """By another key, or unsigned: it takes no room in the file."""
    forged = [
        word(EVE, "south", "east", EAST.public),
        replace(word(EVE, "south", "east", EAST.public), voucher_key=SOUTH.public),
        replace(BOTH[1], signature=bytes(64)),
    ]
    assert two.learn("own", TOLD, [BOTH[0], *forged], "lung").held.heard == (BOTH[0],)


def test_one_key_under_two_names_is_not_vouched_for(two: Peers) -> None:
    """Told in two messages; it counts for neither, and again once the operator has forgotten one."""
    two.learn("own", TOLD, BOTH, "lung")
    mirrored = TOLD | {"mirror": EAST.public}
    del mirrored["east"]
    words = [word(one, name, "mirror", EAST.public) for one, name in ((NORTH, "north"), (SOUTH, "south"))]
    two.learn("own", mirrored, words, "lung")
    assert strangers(at(two.path)) == len(("east", "mirror", "west"))
    two.reject("mirror")
    assert strangers(at(two.path)) == 1


def test_who_is_vouched_for_cannot_vouch_on(two: Peers) -> None:
    """East counts by two vouchers; its word and north's do not make west count."""
    on = [*BOTH, word(EAST, "east", "west", WEST.public), word(NORTH, "north", "west", WEST.public)]
    known = two.learn("own", TOLD, on, "lung")
    assert strangers(known) == 1
    assert known.roster("own", OWN, "lung").peers["west"].vouchers == ("north",)


def test_only_confirmed_hospitals_words_count() -> None:
    """Whatever else may lie in the file."""
    peers = {"north": Peer(NORTH.public), "south": Peer(SOUTH.public, confirmed=True)}
    assert vouchers(BOTH, peers, "lung", "east", EAST.public, NOW) == ("south",)


def test_a_word_taken_back_stays_taken_back(two: Peers) -> None:
    """Also when the older one is shown again, as long as the older one could count."""
    two.learn("own", TOLD, BOTH, "lung")
    back = withdraw(NORTH, BOTH[0], NOW)
    assert back.serial == NOW + 1
    later = at(two.path, NOW + 2)
    assert strangers(later.learn("own", TOLD, [back], "lung")) == 2
    assert strangers(later.learn("own", TOLD, BOTH, "lung")) == 2
    end = at(two.path, NOW + LASTS + 2).learn("own", TOLD, BOTH, "lung")
    assert strangers(end) == 2
    assert end.held.heard == ()


def test_a_voucher_whose_key_is_replaced_or_rejected_vouches_no_more(two: Peers) -> None:
    """Its word was by a key that counts no longer."""
    two.learn("own", TOLD, BOTH, "lung")
    two.learn("own", TOLD | {"south": EVE.public})
    assert strangers(at(two.path)) == 1
    two.confirm("own", OWN, {"south": fingerprint(EVE.public)})
    assert strangers(at(two.path)) == 2


def test_a_pin_that_nobody_stands_by_gives_way_to_a_key_that_is_vouched_for(two: Peers) -> None:
    """A hospital that joined anew is known again by its vouchers; a confirmed pin never gives way."""
    two.learn("own", TOLD, BOTH, "lung")
    anew = TOLD | {"east": EVE.public}
    words = [
        word(one, name, "east", EVE.public, NOW + 1) for one, name in ((NORTH, "north"), (SOUTH, "south"))
    ]
    assert two.learn("own", anew, words[:1], "lung").pinned["east"] == Peer(EAST.public, pending=EVE.public)
    assert two.learn("own", anew, words, "lung").pinned["east"] == Peer(EVE.public)
    two.confirm("own", OWN, {"east": fingerprint(EVE.public)})
    back = [
        word(one, name, "east", EAST.public, NOW + 2) for one, name in ((NORTH, "north"), (SOUTH, "south"))
    ]
    told = two.learn("own", TOLD, back, "lung")
    assert told.pinned["east"] == Peer(EVE.public, confirmed=True, pending=EAST.public)


def test_taking_one_word_back_leaves_the_others(two: Peers) -> None:
    """A withdrawal is of one hospital; what was signed for another goes on to count."""
    two.vouch("own", OWN, "lung", ["north", "south"], "telephone")
    given = {one.subject: one.expires for one in two.withdraw(OWN, ["north"]).held.given}
    assert given == {"north": NOW, "south": NOW + LASTS}


def test_the_bound_on_words_is_each_hospitals_own(path: Path) -> None:
    """As many for one hospital as may be kept take no place from another's."""
    crowd = {f"h{number}": Identity.make() for number in range(MOST_VOUCHERS)}
    told = {name: one.public for name, one in crowd.items()} | {"east": EAST.public, "west": WEST.public}
    peers = at(path).learn("own", told)
    peers.confirm("own", OWN, {name: fingerprint(one.public) for name, one in crowd.items()})
    words = [
        word(one, name, subject, told[subject]) for name, one in crowd.items() for subject in ("east", "west")
    ]
    heard = peers.learn("own", told, words, "lung").held.heard
    assert sorted(one.subject for one in heard) == ["east"] * MOST_VOUCHERS + ["west"] * MOST_VOUCHERS


def test_words_without_end_make_nothing_grow(path: Path) -> None:
    """Of a crowd of confirmed vouchers a few are kept for each hospital, and the known ones may change."""
    crowd = {f"h{number}": Identity.make() for number in range(MOST_VOUCHERS + 4)}
    told = {name: one.public for name, one in crowd.items()} | {"east": EAST.public}
    peers = at(path).learn("own", told)
    peers.confirm("own", OWN, {name: fingerprint(one.public) for name, one in crowd.items()})
    words = [word(one, name, "east", EAST.public) for name, one in crowd.items()]
    first = peers.learn("own", told, words, "lung").held.heard
    assert len(first) == MOST_VOUCHERS
    last = next(one for one in words if one not in first)
    assert peers.learn("own", told, [last], "lung").held.heard == first
    newer = withdraw(crowd[first[0].voucher], first[0], NOW)
    assert newer in peers.learn("own", told, [newer], "lung").held.heard


def test_nobody_vouches_for_whom_he_did_not_ask_himself(two: Peers) -> None:
    """A hospital that is only vouched for included; a word of one's own can be taken back."""
    two.learn("own", TOLD, BOTH, "lung")
    for name in ("east", "west", "nobody"):
        with pytest.raises(EnrolmentError, match=f"{name}: is not confirmed here"):
            two.vouch("own", OWN, "lung", ["north", name], "telephone")
    (given,) = two.vouch("own", OWN, "lung", ["north"], "in person").held.given
    assert given.is_proven()
    assert (given.subject, given.subject_key, given.compared) == ("north", NORTH.public, "in person")
    (taken_back,) = two.withdraw(OWN, ["north"]).held.given
    assert taken_back.is_proven()
    assert taken_back.expires <= two.clock() < given.expires
    assert taken_back.serial > given.serial
    with pytest.raises(EnrolmentError, match="south: this hospital vouches for no such"):
        two.withdraw(OWN, ["south"])


def test_the_file_of_0_1_0_is_read_and_its_confirmations_are_not(tmp_path: Path) -> None:
    """They were made by a digest over everybody; who they were is kept until confirmed anew."""
    path = tmp_path / "peers.toml"
    tables = {"format": (NORTH, "true"), "south": (SOUTH, "false")}
    path.write_text(
        "\n".join(
            f'[{name}]\nkey = "{base64.b64encode(one.public).decode()}"\nconfirmed = {confirmed}\n'
            for name, (one, confirmed) in tables.items()
        )
    )
    peers = peers_of(path)
    assert peers.pinned == {"format": Peer(NORTH.public), "south": Peer(SOUTH.public)}
    assert peers.held.former == {"format"}
    peers.learn("own", {"east": EAST.public})
    assert from_toml(path).former == {"format"}
    before = path.read_text()
    peers.reject("format")
    assert from_toml(path).former == frozenset()
    path.write_text(before)
    peers.confirm("own", OWN, {"format": fingerprint(NORTH.public)})
    assert from_toml(path).former == frozenset()
    assert peers_of(path).pinned["format"].confirmed


@pytest.mark.parametrize(
    "text",
    [
        '[north]\nkey = "no base64!"\nconfirmed = true\n',
        "other = 3\n",
        "format = 2\n",
        'format = 2\nheard = ["AAAA"]\ngiven = []\nconfirmed-by-digest = []\n[hospitals]\n',
    ],
)
def test_a_damaged_file_is_one_clear_error(path: Path, text: str) -> None:
    """Nothing is guessed."""
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"peers\.toml: is damaged"):
        peers_of(path)


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    """It may say what this version does not know."""
    path.write_text("format = 3\n")
    with pytest.raises(ConfigError, match="is of format 3"):
        peers_of(path)


@pytest.mark.parametrize(
    ("hours", "now", "open_"),
    [
        ("", time(3), True),
        ("08:00-18:00", time(8), True),
        ("08:00-18:00", time(18), False),
        ("18:00-06:00", time(23), True),
        ("18:00-06:00", time(5, 59), True),
        ("18:00-06:00", time(12), False),
    ],
)
def test_hours_may_go_over_midnight(hours: str, now: time, open_: bool) -> None:
    """The end does not belong to them."""
    assert opens(hours, now) is open_
