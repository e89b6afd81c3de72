"""What a site remembers of a run between messages.

An adaptor keeps `encoding.dump(state)` in one row per run, reads and replaces it within one exclusive
transaction for every transition of `site`, and sends an answer only once the new state is committed. Two
requests that race thus meet one after the other, and whatever has left the site is known to the state. A
finished run leaves a `Finished`, which is kept for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.errors import SecAggError
from common.secagg.encoding import dump, load
from common.secagg.messages import Advertisement, Dealing, Holders, Masked, UnmaskAnswer
from common.secagg.reasons import Reason, refusal
from common.secagg.terms import Terms


@dataclass(frozen=True)
class Dealt:
    """A slot that this site has dealt for and not yet masked in."""

    holders: Holders
    terms: Terms
    dealing: Dealing
    s: bytes = field(repr=False)
    """X25519 private key of the pairwise masks."""
    b: bytes = field(repr=False)
    """Seed of the self mask."""
    own_share: bytes = field(repr=False)
    """This site's own share of b."""


@dataclass(frozen=True)
class Open:
    """A slot that this site has masked in: its secrets are gone, shares of others remain until it answers."""

    slot: int
    terms: Terms
    digest: bytes
    """D, which this site signed."""
    cohort: tuple[str, ...]
    seeds: dict[str, bytes] = field(repr=False)
    """Shares of b, by dealer; empty once answered."""
    keys: dict[str, bytes] = field(repr=False)
    """Shares of s, by dealer; empty once answered."""
    masked: Masked | None
    """Stored before it was sent, so that the same request gets these bytes again; None once answered."""
    asked_for: str = ""
    """What the caller noted of the train message, to judge it by its own rules again before it unmasks."""
    asked: bytes = b""
    """Digest of the unmask request that was answered."""
    answer: UnmaskAnswer | None = None


@dataclass(frozen=True)
class SiteRun:
    """A site in the middle of a run."""

    run: str
    site: str
    epoch: int
    c: bytes = field(repr=False)
    """X25519 private key to which peers seal shares."""
    highest: int = 0
    """Highest slot that was dealt for; slots start at 1."""
    peers: dict[str, Advertisement] = field(default_factory=dict)
    """The newest key that each peer was seen with."""
    dealt: Dealt | None = None
    open: Open | None = None


@dataclass(frozen=True)
class Finished:
    """What is left of a run for ever: that its id is used up."""

    run: str
    site: str


def save(state: SiteRun | Finished) -> bytes:
    """Return the bytes to store; they hold secrets as long as the run is not finished."""
    return dump(state)


def restore(data: bytes) -> SiteRun:
    """Return the stored state; SecAggError `finished-run`, or `other-version` for what nothing can use."""
    if is_finished(data):
        raise refusal(Reason.FINISHED_RUN)
    try:
        return load(SiteRun, data)
    except SecAggError:
        raise refusal(Reason.OTHER_VERSION) from None


def finished(run: str, data: bytes) -> Finished:
    """Return what replaces the stored state at the end of a run, whatever version stored it."""
    try:
        return Finished(run, restore(data).site)
    except SecAggError:
        return Finished(run, "")


def is_finished(data: bytes) -> bool:
    """Return whether the stored state is that of a finished run."""
    try:
        load(Finished, data)
    except SecAggError:
        return False
    return True
