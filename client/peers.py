"""The other hospitals as this one has pinned them, in peers.toml, and what may change there.

- The coordinator may name hospitals. A new name is pinned and counts for nothing yet; another key for a name
  that is pinned waits there as `pending`. Names without end make nothing grow: who is not confirmed and not
  named any more makes room.
- Confirmed hospitals may vouch for others (`common.secagg.vouching`); the coordinator hands that on.
- The operator confirms a name with the fingerprint that its operator reads out, rejects, and vouches.

A message and a command may want to change the file at once, so each reads, changes and writes it alone.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.pinboard import MOST_PEERS, Pinned, from_toml, to_toml
from common.errors import EnrolmentError, WireError
from common.files import locked, write_text
from common.names import check_name
from common.secagg import vouching
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.vouching import How, Vouch

KEY_BYTES = 32
MOST_VOUCHERS = 16
"""Vouches that are kept for one hospital; two are enough for it to count."""


@dataclass(frozen=True)
class Peers:
    """What stands in the peers.toml at `path`, for the hospital `site` of a federation."""

    path: Path
    held: Pinned
    clock: Callable[[], float] = time.time

    @property
    def pinned(self) -> Mapping[str, Peer]:
        """Every other hospital by name, as pinned; of vouchers it says nothing."""
        return self.held.peers

    def roster(self, site: str, identity: Identity, federation: str = "") -> Roster:
        """Return everyone with the vouchers that count now, and this hospital itself, which needs none.

        Nobody's word counts for a key that is pinned under two names: it is not two hospitals'.
        """
        known = {**self.pinned, site: Peer(identity.public, confirmed=True)}
        names = Counter(peer.public for peer in known.values())
        return Roster(
            {
                name: self._vouched(name, peer, federation) if names[peer.public] == 1 else peer
                for name, peer in known.items()
            }
        )

    def learn(
        self, site: str, told: Mapping[str, bytes], vouches: Iterable[Vouch] = (), federation: str = ""
    ) -> Peers:
        """Take in what the coordinator says, and return the hospitals that it names.

        `told` has the 32 bytes of each one's key, `vouches` others' words on them. What was pinned before
        stays: one that is not named now may come back. Raises WireError where `told` cannot be a federation.
        """
        _check(told)

        def change(held: Pinned) -> Pinned:
            roster = Roster(held.peers)
            for name, public in told.items():
                if name != site:
                    roster = roster.admit(name, public)
            known = replace(held, peers=_with_room(roster.peers, held.peers, told))
            return self._moved(replace(known, heard=self._heard(known, vouches)), federation)

        after = self._change(change)
        named = {name: after.pinned[name] for name in sorted(told) if name in after.pinned}
        return replace(after, held=replace(after.held, peers=named))

    def confirm(self, site: str, identity: Identity, read_out: Mapping[str, str]) -> Peers:
        """Confirm hospitals by the fingerprints that their operators read out: all or, on error, none.

        Raises SecAggError where one is wrong: see `Roster.confirm`.
        """

        def change(held: Pinned) -> Pinned:
            roster = replace(self, held=held).roster(site, identity)
            for name, fingerprint in read_out.items():
                roster = roster.confirm(name, fingerprint)
            peers = {name: peer for name, peer in roster.peers.items() if name != site}
            return replace(held, peers=_as_pinned(peers), former=held.former.difference(read_out))

        return self._change(change)

    def reject(self, name: str) -> Peers:
        """Forget the other key that is pending for a hospital; where none is, forget the hospital."""

        def change(held: Pinned) -> Pinned:
            return replace(
                held, peers=Roster(held.peers).reject(name).peers, former=held.former.difference([name])
            )

        return self._change(change)

    def vouch(self, site: str, identity: Identity, federation: str, names: Iterable[str], how: How) -> Peers:
        """Sign for hospitals that this one's own operator has confirmed. EnrolmentError for any other."""
        now = int(self.clock())

        def change(held: Pinned) -> Pinned:
            given = list(held.given)
            for name in names:
                peer = held.peers.get(name)
                if peer is None or not peer.confirmed:
                    raise EnrolmentError(
                        f"{name}: is not confirmed here, and nobody vouches for whom he did not ask himself. "
                        "Telephone it; then zamenis-hospital confirm."
                    )
                given.append(vouching.vouch(identity, federation, site, name, peer.public, how, now))
            return replace(held, given=vouching.newest(given, now))

        return self._change(change)

    def withdraw(self, identity: Identity, names: Iterable[str]) -> Peers:
        """Take back what this hospital signed for others. EnrolmentError where it did not."""
        now = int(self.clock())

        def change(held: Pinned) -> Pinned:
            given = {one.subject: one for one in held.given}
            if strangers := sorted(set(names) - given.keys()):
                raise EnrolmentError(f"{', '.join(strangers)}: this hospital vouches for no such hospital.")
            given |= {name: vouching.withdraw(identity, given[name], now) for name in names}
            return replace(held, given=tuple(given.values()))

        return self._change(change)

    def vouchers(self, name: str, key: bytes, federation: str) -> tuple[str, ...]:
        """Return the confirmed hospitals whose word for this name with this key counts now."""
        return vouching.vouchers(self.held.heard_on(name), self.pinned, federation, name, key, self.clock())

    def _vouched(self, name: str, peer: Peer, federation: str) -> Peer:
        if peer.confirmed:
            return peer
        return replace(peer, vouchers=self.vouchers(name, peer.public, federation))

    def _heard(self, known: Pinned, vouches: Iterable[Vouch]) -> tuple[Vouch, ...]:
        """Return what is kept of vouches: signed by confirmed hospitals, for pinned ones, few for each."""
        held, confirmed = set(known.heard), {name for name, peer in known.peers.items() if peer.confirmed}
        words = [one for one in vouches if one.voucher in confirmed and one.subject in known.peers]
        proven = [one for one in words if one in held or _is_by(one, known.peers[one.voucher])]
        last = vouching.newest([*known.heard, *proven], self.clock())
        places: dict[str, list[Vouch]] = {}
        for one in sorted(last, key=lambda one: (one.voucher, one.subject) not in known.pairs):
            of_subject = places.setdefault(one.subject, [])
            if one.voucher in confirmed and one.subject in known.peers and len(of_subject) < MOST_VOUCHERS:
                of_subject.append(one)
        return tuple(one for name in sorted(places) for one in places[name])

    def _moved(self, held: Pinned, federation: str) -> Pinned:
        """Return the pins after those moved that nobody stands by, where enough stand by the pending key."""
        now = replace(self, held=held)

        def moved(name: str, peer: Peer) -> Peer:
            if not peer.pending or now._vouched(name, peer, federation).trusted:
                return peer
            other = now._vouched(name, Peer(peer.pending), federation)
            return Peer(peer.pending) if other.trusted else peer

        return replace(held, peers={name: moved(name, peer) for name, peer in held.peers.items()})

    def _change(self, change: Callable[[Pinned], Pinned]) -> Peers:
        """Return what stands in the file once `change` was made; where it makes none, nothing is written."""
        held = from_toml(self.path)
        if change(held) == held:
            return replace(self, held=held)
        with locked(self.path):
            changed = change(from_toml(self.path))
            write_text(self.path, to_toml(changed))
        return replace(self, held=changed)


def peers_of(path: Path) -> Peers:
    """Return the hospitals pinned in a peers.toml. ConfigError where it is damaged."""
    return Peers(path, from_toml(path))


def _check(told: Mapping[str, bytes]) -> None:
    """Raise WireError where these names and keys are not those of a federation's hospitals."""
    if len(told) > MOST_PEERS or any(len(public) != KEY_BYTES for public in told.values()):
        raise WireError("the coordinator names hospitals in a way that no federation has.")
    if len({name.lower() for name in told}) < len(told) or len(set(told.values())) < len(told):
        raise WireError("the coordinator names one hospital twice.")
    try:
        for name in told:
            check_name(name)
    except ValueError as error:
        raise WireError("the coordinator names a hospital by what is no name.") from error


def _with_room(
    peers: Mapping[str, Peer], before: Mapping[str, Peer], told: Mapping[str, bytes]
) -> dict[str, Peer]:
    """Return at most MOST_PEERS: the confirmed first, then who is named now, known ones before new ones."""

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        return not peers[name].confirmed, name not in told, name not in before, name

    return {name: peers[name] for name in sorted(sorted(peers, key=rank)[:MOST_PEERS])}


def _as_pinned(peers: Mapping[str, Peer]) -> dict[str, Peer]:
    return {name: replace(peer, vouchers=()) for name, peer in peers.items()}


def _is_by(one: Vouch, voucher: Peer) -> bool:
    return hmac.compare_digest(one.voucher_key, voucher.public) and one.is_proven()
