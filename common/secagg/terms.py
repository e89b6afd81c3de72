"""What a site relied on when it dealt for a slot: frozen with the slot, and judged again at every later step.

A roster and a policy may change while a slot is open, by an operator or on the coordinator's word. Signatures
of the slot are verified with the keys that were pinned when it was dealt for, and with no others; whether
the site goes on is judged by the stricter of what it demanded and trusted then and what it does now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.secagg.identity import Roster, verify
from common.secagg.messages import Holders
from common.secagg.numbers import Numbers, Policy


@dataclass(frozen=True)
class Terms:
    """One site's terms for one slot."""

    site: str
    """Whose terms they are; it does not suspect itself."""
    numbers: Numbers
    keys: dict[str, bytes]
    """Every holder's identity key as this site had it pinned when it dealt."""
    suspects: tuple[str, ...] = ()
    """Holders that count as colluders, since at some step their key here was not a confirmed one."""
    min_cohort: int = 0
    colluders: int = 0

    @classmethod
    def of(cls, site: str, roster: Roster, policy: Policy, holders: Holders) -> Terms:
        """Return a site's terms for a request to deal; SecAggError where its policy refuses the numbers."""
        return cls(site, holders.numbers, roster.keys(holders.sites)).judged(roster, policy)

    def judged(self, roster: Roster, policy: Policy) -> Terms:
        """Return the terms with what roster and policy now add to them; SecAggError if they do not hold."""
        peers = {peer: key for peer, key in self.keys.items() if peer != self.site}
        suspects = {*self.suspects, *roster.untrusted(peers)}
        stricter = replace(
            policy,
            min_cohort=max(self.min_cohort, policy.min_cohort),
            colluders=max(self.colluders, policy.borne(self.numbers.holders)),
        )
        stricter.check(self.numbers, len(suspects))
        return replace(
            self,
            suspects=tuple(sorted(suspects)),
            min_cohort=stricter.min_cohort,
            colluders=stricter.borne(self.numbers.holders),
        )

    def verify(self, site: str, signature: bytes, purpose: str, *content: object) -> None:
        """Raise SecAggError unless `signature` is a holder's, by its key of when the slot was dealt for."""
        verify(site, self.keys[site], signature, purpose, *content)
