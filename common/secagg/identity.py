"""Who a site is: its signing key, and the keys that it has pinned for its peers.

An identity is one Ed25519 key, made at the site. A roster pins every peer's public key. The coordinator
runs enrolment, so a key that came through it proves nothing by itself: a peer counts as a colluder until
this hospital's operator has compared the fingerprint of its key with the peer's operator, outside the
coordinator's channel, or until enough hospitals that were compared so vouch for it (`vouching`). What a
comparison confirms is that one name with that one key. Another key for a known name waits for the operator.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.identity import fingerprint
from common.secagg.encoding import statement
from common.secagg.entropy import fresh
from common.secagg.numbers import default_colluders
from common.secagg.reasons import Reason, refusal
from common.secagg.shamir import MOST_HOLDERS

VOUCHERS = max(2, default_colluders(MOST_HOLDERS) + 1)
"""Confirmed hospitals that must vouch for a key before it counts: one more than may collude, two at least."""


@dataclass(frozen=True)
class Identity:
    """A site's signing key: the 32 bytes of an Ed25519 private key."""

    secret: bytes = field(repr=False)

    @classmethod
    def make(cls) -> Identity:
        """Return a new identity from the operating system's generator."""
        return cls(fresh(32))

    @property
    def public(self) -> bytes:
        """The 32 bytes that peers pin."""
        return self._key().public_key().public_bytes_raw()

    def sign(self, purpose: str, *content: object) -> bytes:
        """Return the 64-byte signature over content, valid for this purpose only."""
        return self._key().sign(statement(purpose, *content))

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.secret)


@dataclass(frozen=True)
class Peer:
    """A peer's pinned key, and what this hospital has to go by that it is the peer's."""

    public: bytes
    confirmed: bool = False
    """Whether this hospital's own operator has compared it outside the coordinator's channel."""
    vouchers: tuple[str, ...] = ()
    """Confirmed peers that vouch for exactly this name with this key."""
    pending: bytes = b""
    """Another key that was told for the same name since; it waits for the operator. Empty: none."""

    @property
    def trusted(self) -> bool:
        """Whether the peer need not be counted as a colluder."""
        return self.confirmed or len(self.vouchers) >= VOUCHERS

    def told(self, public: bytes) -> Peer:
        """Return the peer once the coordinator has named `public` as its key: the pinned key stays."""
        return self if hmac.compare_digest(public, self.public) else replace(self, pending=public)

    def compared(self, read_out: str) -> Peer | None:
        """Return the peer confirmed with the key whose fingerprint was read out; None where it is neither.

        Spaces and case do not matter. The pinned key leaves what is pending, so that it still shows.
        """
        if _reads(self.public, read_out):
            return replace(self, confirmed=True)
        if self.pending and _reads(self.pending, read_out):
            return Peer(self.pending, confirmed=True)
        return None


def _reads(public: bytes, read_out: str) -> bool:
    """Return whether `read_out` is the fingerprint of `public`, compared in constant time."""
    heard, own = ("".join(text.lower().split()).encode() for text in (read_out, fingerprint(public)))
    return hmac.compare_digest(heard, own)


@dataclass(frozen=True)
class Roster:
    """Every site of the federation as one member has pinned it, this member among them."""

    peers: Mapping[str, Peer]

    def admit(self, site: str, public: bytes) -> Roster:
        """Return the roster after the coordinator named this site's key: pinned if new, else pending."""
        known = self.peers.get(site)
        return self._with(site, known.told(public) if known else Peer(public))

    def confirm(self, site: str, read_out: str) -> Roster:
        """Return the roster with this site confirmed; `read_out` is the fingerprint that its operator read.

        Raises SecAggError where that is no key told for this name, or a key confirmed for another name.
        """
        peer = self._peer(site).compared(read_out)
        if peer is None:
            raise refusal(Reason.WRONG_FINGERPRINT, site)
        others = (known for name, known in self.peers.items() if name != site and known.confirmed)
        if any(hmac.compare_digest(known.public, peer.public) for known in others):
            raise refusal(Reason.SHARED_KEY, site)
        return self._with(site, peer)

    def reject(self, site: str) -> Roster:
        """Return the roster without the key pending for this site; where none is, without the site."""
        if self._peer(site).pending:
            return self._with(site, replace(self.peers[site], pending=b""))
        return replace(self, peers={name: peer for name, peer in self.peers.items() if name != site})

    def unconfirmed(self, sites: Iterable[str]) -> int:
        """Return how many of these sites must be counted as colluders."""
        return len(self.untrusted(self.keys(sites)))

    def keys(self, sites: Iterable[str]) -> dict[str, bytes]:
        """Return these sites' keys as they are pinned; SecAggError where one is unknown."""
        return {site: self._peer(site).public for site in sites}

    def untrusted(self, keys: Mapping[str, bytes]) -> list[str]:
        """Return the sites for which another key than this, or none, is pinned and trusted."""
        trusted = {site: peer.public for site, peer in self.peers.items() if peer.trusted}
        return [site for site, key in keys.items() if not hmac.compare_digest(trusted.get(site, b""), key)]

    def verify(self, site: str, signature: bytes, purpose: str, *content: object) -> None:
        """Raise SecAggError unless `signature` is this site's over content for this purpose."""
        verify(site, self._peer(site).public, signature, purpose, *content)

    def _peer(self, site: str) -> Peer:
        if site not in self.peers:
            raise refusal(Reason.UNKNOWN_SITE, site)
        return self.peers[site]

    def _with(self, site: str, peer: Peer) -> Roster:
        return replace(self, peers={**self.peers, site: peer})


def verify(site: str, public: bytes, signature: bytes, purpose: str, *content: object) -> None:
    """Raise SecAggError, which names `site`, unless `signature` is by the key `public` over content."""
    if not is_signed(public, signature, purpose, *content):
        raise refusal(Reason.UNTRUSTED, site)


def is_signed(public: bytes, signature: bytes, purpose: str, *content: object) -> bool:
    """Return whether the owner of `public` signed content for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement(purpose, *content))
    except (InvalidSignature, ValueError):
        return False
    return True
