"""Pinned hospitals, and what it takes to confirm them."""

from __future__ import annotations

from datetime import time
from pathlib import Path

import pytest

from client.hours import opens
from client.peers import as_toml, peers_of
from common.errors import ConfigError, SecAggError
from common.secagg.identity import Identity, Peer

OWN, NORTH, SOUTH = (Identity.make() for _ in range(3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a peers.toml that knows one hospital, confirmed."""
    path = tmp_path / "peers.toml"
    path.write_text(as_toml({"north": Peer(NORTH.public, confirmed=True)}))
    return path


def test_what_the_coordinator_names_is_pinned_and_not_confirmed(path: Path) -> None:
    """A new hospital, and one whose key has changed; what is known stays as it was."""
    told = {"north": NORTH.public, "south": SOUTH.public, "own": b"x" * 32}
    learnt = peers_of(path).learn("own", told)
    assert learnt.pinned == peers_of(path).pinned
    assert {name: peer.confirmed for name, peer in learnt.pinned.items()} == {"north": True, "south": False}
    changed = learnt.learn("own", {"north": SOUTH.public, "south": SOUTH.public})
    assert not changed.pinned["north"].confirmed
    assert changed.roster("own", OWN).unconfirmed(["own", "north", "south"]) == 2


def test_the_digest_that_others_read_out_confirms_everyone(path: Path) -> None:
    """However it is spaced; another digest confirms nobody."""
    peers = peers_of(path).learn("own", {"north": NORTH.public, "south": SOUTH.public})
    digest = peers.roster("own", OWN).digest()
    with pytest.raises(SecAggError, match="digest"):
        peers.confirm("own", OWN, "0" + digest[1:] if digest[0] != "0" else "1" + digest[1:])
    assert peers_of(path).pinned == peers.pinned
    confirmed = peers.confirm("own", OWN, f" {digest.replace(' ', '').upper()} ")
    assert all(peer.confirmed for peer in peers_of(path).pinned.values())
    assert confirmed.pinned.keys() == {"north", "south"}


def test_a_damaged_file_is_one_clear_error(path: Path) -> None:
    """Nothing is guessed."""
    path.write_text('[north]\nkey = "no base64!"\nconfirmed = true\n')
    with pytest.raises(ConfigError, match=r"peers\.toml: is damaged"):
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
