"""How many must hold, answer and be honest: the inequalities that keep a lying coordinator to one sum.

Of a slot's n holders, t shares give a secret, and n_c may collude with the coordinator. Every honest holder
answers one unmask request, which names at least t survivors. It follows that

- no site's two secrets both come out if 2 t > n + n_c: the two share sets would need 2 (t - n_c) answers of
  honest holders, who give n - n_c, and never both kinds for one peer;
- by naming different survivors to different holders, a coordinator can have at most `revealed` = floor((n -
  n_c) (n - t) / (t - n_c)) honest sites taken for dropped: each needs t - n_c answers, each answer names at
  most n - t;
- the other honest sites stay in one sum as long as the graph of pairwise masks stays connected without the
  revealed sites and the colluders: its connectivity must exceed revealed + n_c. Nothing less would do,
  since the coordinator may choose to drop exactly one site's neighbours.

The graph is the complete one up to COMPLETE_UP_TO sites, else a circulant in which every site is paired
with its degree nearest in the cohort's circle (Harary 1962: connectivity equals degree, the best that any
graph has). Bell et al. 2020 (CCS, IACR ePrint 2020/704) take random graphs of logarithmic degree, against
dropouts that do not depend on the graph; a coordinator that lies about dropouts sees the graph first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.secagg.reasons import Reason, refusal
from common.secagg.shamir import MOST_HOLDERS

COMPLETE_UP_TO = 32
"""Sites up to which all pairs are masked: 31 masks of a million parameters take about 15 ms."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of a slot that every one of its manifests is bound to."""

    holders: int
    """n: sites that get shares."""
    threshold: int
    """t: shares that give a secret, and survivors that a sum needs."""
    degree: int
    """Peers with whom each site of the cohort shares a mask."""

    def revealed(self, colluders: int) -> int:
        """Return how many honest sites at most can be taken for dropped."""
        honest = self.holders - colluders
        return honest * (self.holders - self.threshold) // (self.threshold - colluders)

    def fewest_honest(self, colluders: int) -> int:
        """Return how many honest sites at least are in any sum that comes out."""
        return self.holders - colluders - self.revealed(colluders)


@dataclass(frozen=True)
class Policy:
    """What one site demands of every slot; never taken from the coordinator."""

    min_cohort: int = 3
    """Honest sites that any sum must cover."""
    colluders: int | None = None
    """Confirmed sites that may collude with the coordinator; None: 1 from five holders, 0 below."""
    low_threshold: bool = False
    """Whether t may lie below the default for n; the inequalities suffice, this is a second wall."""

    def check(self, numbers: Numbers, unconfirmed: int) -> None:
        """Raise SecAggError unless the numbers keep the promise; unconfirmed holders count as colluders."""
        n, t = numbers.holders, numbers.threshold
        if not 2 <= n <= MOST_HOLDERS:
            raise refusal(Reason.TOO_MANY_SITES)
        colluders = self.borne(n) + unconfirmed
        if not colluders < t <= n:
            raise refusal(Reason.BAD_THRESHOLD)
        if not 2 * t > n + colluders:
            raise refusal(Reason.SPLIT_VIEWS)
        if numbers.fewest_honest(colluders) < self.min_cohort:
            raise refusal(Reason.TOO_FEW_HONEST)
        if numbers.degree < least_degree(numbers, colluders):
            raise refusal(Reason.SPARSE_GRAPH)
        if t < default_threshold(n) and not self.low_threshold:
            raise refusal(Reason.LOW_THRESHOLD)

    def borne(self, holders: int) -> int:
        """Return how many confirmed ones of so many holders may collude."""
        return default_colluders(holders) if self.colluders is None else self.colluders


def default_colluders(holders: int) -> int:
    """Return the colluders that a slot of this size is built to bear: 1 from five holders, 0 below."""
    return 1 if holders >= 5 else 0


def default_threshold(holders: int) -> int:
    """Return the t that a coordinator proposes for n holders.

    Just under a third of the sites may drop (t = floor(2n/3) + 1), above COMPLETE_UP_TO just under a fifth
    (t = floor(4n/5) + 1): the fewer may drop, the sparser the graph may be.
    """
    return (2 * holders // 3 if holders <= COMPLETE_UP_TO else 4 * holders // 5) + 1


def default_numbers(holders: int, *, colluders: int | None = None, threshold: int | None = None) -> Numbers:
    """Return the numbers that a coordinator proposes."""
    complete = Numbers(holders, threshold or default_threshold(holders), max(holders - 1, 0))
    if holders <= COMPLETE_UP_TO:
        return complete
    borne = default_colluders(holders) if colluders is None else colluders
    return replace(complete, degree=least_degree(complete, borne))


def least_degree(numbers: Numbers, colluders: int) -> int:
    """Return the smallest degree that keeps any slot's honest survivors connected; even, or all pairs."""
    connectivity = numbers.revealed(colluders) + colluders + 1
    return min(connectivity + connectivity % 2, numbers.holders - 1)


def neighbours(position: int, cohort: int, degree: int) -> list[int]:
    """Return the positions in a cohort of those with whom `position` shares a mask, ascending."""
    reach = degree // 2
    if 2 * reach >= cohort - 1 or degree >= cohort - 1:
        return [other for other in range(cohort) if other != position]
    offsets = (*range(-reach, 0), *range(1, reach + 1))
    return sorted((position + offset) % cohort for offset in offsets)
