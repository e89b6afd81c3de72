"""A slot's secrets of one site: made, shared among the holders, sealed to each, and opened by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from common.secagg import agreement, shamir
from common.secagg.entropy import fresh
from common.secagg.identity import Identity
from common.secagg.messages import MANIFEST, Advertisement, Dealing, Holders, Manifest, commitment_to
from common.secagg.reasons import Reason, refusal
from common.secagg.state import Dealt
from common.secagg.terms import Terms

SECRET = 32
"""Bytes of each of the two secrets: s, then b."""


def make(identity: Identity, c: bytes, holders: Holders, terms: Terms) -> Dealt:
    """Return fresh secrets for a slot, dealt to exactly `holders`; `c` is the dealer's own sealing key."""
    site, s, b = terms.site, fresh(SECRET), fresh(SECRET)
    commitment, bound = commitment_to(b, holders.run, holders.slot, site), holders.digest(terms.keys)
    unsigned = Manifest(holders.run, holders.slot, site, agreement.public_of(s), commitment, bound)
    manifest = replace(unsigned, signature=identity.sign(MANIFEST, *unsigned.signed()))
    shares, public = (
        shamir.split(s + b, holders.threshold, len(holders.advertisements)),
        agreement.public_of(c),
    )
    own, sealed = b"", {}
    for holder, share in zip(holders.advertisements, shares, strict=True):
        if holder.site == site:
            own = share[SECRET:]
        else:
            key = _key(c, holder, manifest, dealer=public, holder=holder)
            sealed[holder.site] = agreement.seal(key, share, holder.site, *manifest.signed())
    return Dealt(holders, terms, Dealing(manifest, sealed), s, b, own)


def open_share(c: bytes, site: str, holders: Holders, manifest: Manifest, sealed: bytes) -> bytes:
    """Return the 64 bytes that a dealer sealed to `site`: a share of its s, then of its b."""
    by_name: Mapping[str, Advertisement] = {each.site: each for each in holders.advertisements}
    dealer = by_name[manifest.site]
    key = _key(c, dealer, manifest, dealer=dealer.c, holder=by_name[site])
    share = agreement.unseal(key, sealed, manifest.site, site, *manifest.signed())
    if len(share) != 2 * SECRET:
        raise refusal(Reason.BAD_SHARE, manifest.site)
    return share


def _key(
    c: bytes, other: Advertisement, manifest: Manifest, *, dealer: bytes, holder: Advertisement
) -> bytes:
    """Return the sealing key of one dealer, one holder and one slot, from either end."""
    context = (manifest.run, manifest.slot, manifest.site, holder.site, dealer, holder.c)
    return agreement.shared_key(c, other.c, other.site, "share", *context)
