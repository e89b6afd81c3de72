"""Hospitals that vouch for others, so that not every two operators have to telephone.

A vouch says, signed by the voucher's identity key: my own operator compared this key with the operator of the
hospital of this name. It counts at a hospital whose own operator has confirmed the voucher, for exactly that
name with that key, until it expires. Who is only vouched for cannot vouch on: a chain would be as weak as its
weakest link, and a liar's inventions could vouch for each other.

The cliff: `identity.VOUCHERS` confirmed hospitals that lie together have anybody taken for a hospital.
One fewer can do nothing, since a stranger then has an honest voucher, whose operator spoke to somebody.

A vouch is withdrawn by a newer one that has expired already. Of a voucher's words on one subject the newest
counts; an older one is good for `LASTS` at most, so a newer one must be remembered that long and no longer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Literal, get_args

from common.secagg.identity import Identity, Peer, is_signed

PURPOSE = "vouch"
DAY = 24 * 3600
LASTS = 400 * DAY
"""Seconds that a vouch is good for: a year, and some weeks to renew it in."""
MOST_BYTES = 1024
"""Of an encoded vouch: three names of 32 letters, two keys and a signature take half of it."""
How = Literal["telephone", "in person"]


@dataclass(frozen=True)
class Vouch:
    """One hospital's signed word that another's key is that hospital's."""

    federation: str
    voucher: str
    voucher_key: bytes
    subject: str
    subject_key: bytes
    compared: str
    """One of `How`."""
    serial: int
    """When it was signed, in Unix seconds: a newer one takes an older one's place."""
    expires: int
    """Unix seconds."""
    signature: bytes = b""

    def signed(self) -> tuple[object, ...]:
        """Return what the signature covers: every field before it."""
        return astuple(self)[:-1]

    def is_proven(self) -> bool:
        """Return whether the voucher signed this, and it says something that a vouch can say."""
        sound = self.compared in get_args(How) and self.expires <= self.serial + LASTS
        return sound and is_signed(self.voucher_key, self.signature, PURPOSE, *self.signed())


def vouch(
    identity: Identity, federation: str, voucher: str, subject: str, key: bytes, how: How, now: int
) -> Vouch:
    """Return this hospital's signed word for the subject's key."""
    unsigned = Vouch(federation, voucher, identity.public, subject, key, how, now, now + LASTS)
    return _signed(identity, unsigned)


def withdraw(identity: Identity, given: Vouch, now: int) -> Vouch:
    """Return what takes the place of a vouch that this hospital gave and no longer stands by."""
    return _signed(identity, replace(given, serial=max(now, given.serial + 1), expires=now))


def _signed(identity: Identity, unsigned: Vouch) -> Vouch:
    return replace(unsigned, signature=identity.sign(PURPOSE, *unsigned.signed()))


def newest(vouches: Iterable[Vouch], now: float) -> tuple[Vouch, ...]:
    """Return every voucher's last word on every subject, in order; none that no older one can outlive."""
    last: dict[tuple[str, str], Vouch] = {}
    for one in vouches:
        known = last.get((one.voucher, one.subject))
        current = now - LASTS < one.serial <= now + DAY
        if current and (known is None or one.serial > known.serial):
            last[one.voucher, one.subject] = one
    return tuple(last[pair] for pair in sorted(last))


def vouchers(
    vouches: Iterable[Vouch], peers: Mapping[str, Peer], federation: str, site: str, key: bytes, now: float
) -> tuple[str, ...]:
    """Return the confirmed peers that vouch for this site with this key now, ascending.

    `vouches` are `newest` ones; each is checked here, whatever was checked before.
    """
    return tuple(
        sorted(
            one.voucher
            for one in vouches
            if one.subject == site
            and one.federation == federation
            and hmac.compare_digest(one.subject_key, key)
            and now < one.expires
            and _is_confirmed(peers.get(one.voucher), one.voucher_key)
            and one.is_proven()
        )
    )


def _is_confirmed(peer: Peer | None, key: bytes) -> bool:
    return peer is not None and peer.confirmed and hmac.compare_digest(peer.public, key)
