"""The other hospitals as this one has pinned them: peers.toml, a table per hospital.

A key that comes from the coordinator is pinned as unconfirmed. `confirm` is what an operator does after
comparing the roster's digest with the other hospitals by telephone (docs/hospital.md).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import ConfigError, WireError
from common.files import write_text
from common.names import check_name
from common.secagg.identity import Identity, Peer, Roster
from common.settings import read_toml

MOST_PEERS, KEY_BYTES = 255, 32


@dataclass(frozen=True)
class Peers:
    """Pinned hospitals by name, as they stand in `path`."""

    path: Path
    pinned: Mapping[str, Peer]

    def roster(self, site: str, identity: Identity) -> Roster:
        """Return everyone, this hospital itself included, which needs no confirming."""
        return Roster({**self.pinned, site: Peer(identity.public, confirmed=True)})

    def learn(self, site: str, told: Mapping[str, bytes]) -> Peers:
        """Pin the hospitals that the coordinator names and return them; new or changed keys are unconfirmed.

        What was pinned before stays in the file: one that is not named now may come back. Raises WireError
        where a name or a key is none.
        """
        if len(told) > MOST_PEERS or any(len(public) != KEY_BYTES for public in told.values()):
            raise WireError("the coordinator names hospitals in a way that no federation has.")
        roster = Roster(self.pinned)
        for name, public in told.items():
            if name != site:
                roster = roster.admit(_checked(name), public)
        if roster.peers != self.pinned:
            write_text(self.path, as_toml(roster.peers))
        return Peers(self.path, {name: roster.peers[name] for name in sorted(told) if name != site})

    def confirm(self, site: str, identity: Identity, compared: str) -> Peers:
        """Confirm everyone, after operators have compared; SecAggError where `compared` is another digest."""
        confirmed = self.roster(site, identity).confirm(self.pinned, compared).peers
        told = {name: peer for name, peer in confirmed.items() if name != site}
        write_text(self.path, as_toml({**peers_of(self.path).pinned, **told}))
        return Peers(self.path, told)


def _checked(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise WireError("the coordinator names a hospital by what is no name.") from error


def as_toml(pinned: Mapping[str, Peer]) -> str:
    """Return pinned hospitals as the text of peers.toml."""
    tree: dict[str, Any] = {
        name: {"key": base64.b64encode(peer.public).decode(), "confirmed": peer.confirmed}
        for name, peer in sorted(pinned.items())
    }
    return tomli_w.dumps(tree)


def peers_of(path: Path) -> Peers:
    """Return the hospitals pinned in a peers.toml. ConfigError where it is damaged."""
    try:
        pinned = {
            name: Peer(base64.b64decode(told["key"], validate=True), confirmed=told["confirmed"] is True)
            for name, told in read_toml(path).items()
        }
    except (TypeError, KeyError, binascii.Error) as error:
        raise ConfigError(f"{path.name}: is damaged. Restore it from a backup, or join again.") from error
    return Peers(path, pinned)
