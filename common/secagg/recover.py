"""Reconstructing secrets from answers of which some may be wrong."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

from common.secagg import shamir
from common.secagg.reasons import Reason, refusal

MOST_TRIES = 2000
"""Sets of shares tried for one secret: enough around any one liar, two among sixty, three among twenty."""


@dataclass
class Recovery:
    """Reconstructs one secret after another, and remembers who provably answered wrongly.

    A secret that fits is right, however many lied. Who lied follows only while at most half of the m - t
    answers to spare are off the polynomial that was found, for then no other polynomial is as near (the
    unique decoding radius of Reed and Solomon's codes, 1960); beyond it, several liars in league could make
    honest holders look wrong, and nobody is named.
    """

    threshold: int
    liars: set[str] = field(default_factory=set)

    def secret(
        self, site: str, shares: Mapping[str, bytes], points: Mapping[str, int], fits: Callable[[bytes], bool]
    ) -> bytes:
        """Return the secret of `site` that `fits`; SecAggError `unrecoverable` where no shares give it.

        `shares` and `points` go by holder. Holders caught before are asked last.
        """
        holders = sorted(shares, key=lambda holder: (holder in self.liars, points[holder]))
        for chosen in islice(_sets(holders, self.threshold), MOST_TRIES):
            at = [points[holder] for holder in chosen]
            using = [shares[holder] for holder in chosen]
            secret = shamir.combine(using, at)
            if fits(secret):
                self._blame(shares, points, using, at)
                return secret
        raise refusal(Reason.UNRECOVERABLE, site)

    def _blame(
        self,
        shares: Mapping[str, bytes],
        points: Mapping[str, int],
        using: Sequence[bytes],
        at: Sequence[int],
    ) -> None:
        """Note the holders whose shares are not on the polynomial that was found, if that proves anything."""
        others = [holder for holder in shares if points[holder] not in at]
        off = {
            holder
            for holder in others
            if not hmac.compare_digest(shares[holder], shamir.combine(using, at, at=points[holder]))
        }
        if 2 * len(off) <= len(shares) - self.threshold:
            self.liars |= off


def _sets(holders: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield sets of holders, first those that leave out the fewest of the leading ones."""
    if len(holders) < size:
        return
    yield holders[:size]
    for left_out in range(1, len(holders) - size + 1):
        for without in combinations(holders, left_out):
            rest = [holder for holder in holders if holder not in without]
            yield rest[:size]
