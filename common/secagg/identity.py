"""Who a site is: its signing key, and the keys that it has pinned for its peers.

An identity is one Ed25519 key, made at the site. A roster pins every peer's public key. The coordinator
runs enrolment, so a key that came through it proves nothing by itself: a peer is unconfirmed, and counts
as a colluder, until this hospital's operator has compared the roster's digest with the peer's operators
outside the coordinator's channel. A changed key is a new, unconfirmed peer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.identity import roster_digest
from common.secagg.encoding import statement
from common.secagg.entropy import fresh
from common.secagg.reasons import Reason, refusal


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
    """A peer's pinned key, and whether an operator has compared it outside the coordinator's channel."""

    public: bytes
    confirmed: bool = False


@dataclass(frozen=True)
class Roster:
    """Every site of the federation as one member has pinned it, this member among them."""

    peers: Mapping[str, Peer]

    def digest(self) -> str:
        """Return what operators compare by telephone: a fingerprint of all names and keys."""
        return roster_digest({site: peer.public for site, peer in self.peers.items()})

    def admit(self, site: str, public: bytes) -> Roster:
        """Return the roster with this site's key; a new or changed one is unconfirmed."""
        known = self.peers.get(site)
        if known is not None and hmac.compare_digest(known.public, public):
            return self
        return replace(self, peers={**self.peers, site: Peer(public)})

    def confirm(self, sites: Iterable[str], compared: str) -> Roster:
        """Return the roster with these peers confirmed; `compared` is the digest that operators agree on."""
        told, own = ("".join(text.lower().split()).encode() for text in (compared, self.digest()))
        if not hmac.compare_digest(told, own):
            raise refusal(Reason.WRONG_DIGEST)
        confirmed = {site: replace(self._peer(site), confirmed=True) for site in sites}
        return replace(self, peers={**self.peers, **confirmed})

    def unconfirmed(self, sites: Iterable[str]) -> int:
        """Return how many of these sites must be counted as colluders."""
        return len(self.untrusted(self.keys(sites)))

    def keys(self, sites: Iterable[str]) -> dict[str, bytes]:
        """Return these sites' keys as they are pinned; SecAggError where one is unknown."""
        return {site: self._peer(site).public for site in sites}

    def untrusted(self, keys: Mapping[str, bytes]) -> list[str]:
        """Return the sites for which another key than this, or none, is pinned and confirmed."""
        trusted = {site: peer.public for site, peer in self.peers.items() if peer.confirmed}
        return [site for site, key in keys.items() if not hmac.compare_digest(trusted.get(site, b""), key)]

    def verify(self, site: str, signature: bytes, purpose: str, *content: object) -> None:
        """Raise SecAggError unless `signature` is this site's over content for this purpose."""
        verify(site, self._peer(site).public, signature, purpose, *content)

    def _peer(self, site: str) -> Peer:
        if site not in self.peers:
            raise refusal(Reason.UNKNOWN_SITE, site)
        return self.peers[site]


def verify(site: str, public: bytes, signature: bytes, purpose: str, *content: object) -> None:
    """Raise SecAggError, which names `site`, unless `signature` is by the key `public` over content."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement(purpose, *content))
    except (InvalidSignature, ValueError) as error:
        raise refusal(Reason.UNTRUSTED, site) from error
