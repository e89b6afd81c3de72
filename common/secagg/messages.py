"""What sites and coordinator send each other: frozen records, and the statements that are signed.

All travel as `encoding.dump(record)` and are read with `encoding.load(Kind, data)`. A record from the other
side is believed only as far as `site` or `aggregator` has checked it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise

from common.secagg.encoding import digest
from common.secagg.layout import Layout
from common.secagg.numbers import Numbers

ADVERTISE, MANIFEST, MASKED = "advertise", "manifest", "masked"
"""Purposes of signatures."""


@dataclass(frozen=True)
class Advertisement:
    """A site's X25519 key for one run, to which its peers seal shares."""

    run: str
    site: str
    epoch: int
    """Grows with every new key of the site in this run."""
    c: bytes
    signature: bytes = b""

    def signed(self) -> tuple[object, ...]:
        """Return what the signature covers."""
        return self.run, self.site, self.epoch, self.c


@dataclass(frozen=True)
class Holders:
    """The request to deal: who gets shares for a slot, under which keys, and the slot's numbers."""

    run: str
    slot: int
    threshold: int
    degree: int
    advertisements: tuple[Advertisement, ...]
    """One for each holder, in ascending order of the sites' names."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The holders' names; the first is number 1 in Shamir's sense."""
        return tuple(each.site for each in self.advertisements)

    @property
    def numbers(self) -> Numbers:
        """n, t and the mask graph's degree."""
        return Numbers(len(self.advertisements), self.threshold, self.degree)

    def point(self, site: str) -> int:
        """Return a holder's number in Shamir's sense."""
        return 1 + self.sites.index(site)

    def digest(self, keys: Mapping[str, bytes]) -> bytes:
        """Return what every manifest of the slot is bound to: run, slot, numbers, names and keys.

        `keys` are the holders' identity keys as whoever signs the manifest has them pinned: those whose
        digests are equal mean the same sites by the same names.
        """
        whole = tuple((keys[each.site], *each.signed()) for each in self.advertisements)
        return digest("holders", self.run, self.slot, self.threshold, self.degree, whole)


@dataclass(frozen=True)
class Manifest:
    """What a site commits to when it deals for a slot."""

    run: str
    slot: int
    site: str
    s: bytes
    """X25519 key for pairwise masks, used in this slot only."""
    commitment: bytes
    """Digest of the self-mask's seed b."""
    holders: bytes
    """`Holders.digest` of exactly those it dealt to."""
    signature: bytes = b""

    def signed(self) -> tuple[object, ...]:
        """Return what the signature covers, and what every share sealed with it is bound to."""
        return self.run, self.slot, self.site, self.s, self.commitment, self.holders


@dataclass(frozen=True)
class Dealing:
    """A site's manifest for a slot, and its two secrets' shares, sealed to each other holder."""

    manifest: Manifest
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Payload:
    """What is sent down beside a plan, by SHA-256; each side computes it from the bytes in its own hands."""

    model: bytes
    configuration: bytes

    @classmethod
    def of(cls, model: bytes, configuration: bytes) -> Payload:
        """Return the digests of the weights' and the configuration's bytes."""
        return cls(sha256(model).digest(), sha256(configuration).digest())


REHEARSAL = "rehearsal-"
"""How the id of a rehearsal's run begins (`rehearsal`), and of no other."""
PUBLIC = Payload.of(b"a public vector", b"")
"""What a rehearsal is about; no weights have this digest, as their bytes come in fours."""


def rehearses(run: str) -> bool:
    """Return whether a run is a rehearsal's."""
    return run.startswith(REHEARSAL)


@dataclass(frozen=True)
class Plan:
    """What a slot's cohort must agree on, bit for bit, or their masks do not cancel."""

    run: str
    slot: int
    payload: Payload
    layout: Layout
    manifests: tuple[Manifest, ...]
    """The cohort's, in ascending order of the sites' names."""

    @property
    def cohort(self) -> tuple[str, ...]:
        """The sites that mask in this slot."""
        return tuple(manifest.site for manifest in self.manifests)

    def digest(self) -> bytes:
        """Return D, which enters every mask's key and is signed by everyone who masks."""
        return digest("plan", self)


@dataclass(frozen=True)
class MaskRequest:
    """What goes down with the weights: the plan, and what the cohort's others sealed to this site."""

    plan: Plan
    sealed: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """What comes up: the packed masked vector, and this site's signature on D."""

    run: str
    slot: int
    site: str
    vector: bytes = field(repr=False)
    signature: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """Who masked, proved by signatures on D, and who did not; everyone in the cohort is one or the other."""

    run: str
    slot: int
    survivors: dict[str, bytes]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class UnmaskAnswer:
    """Shares of the survivors' self-mask seeds and of the dropped sites' mask keys, never both of one."""

    run: str
    slot: int
    site: str
    seeds: dict[str, bytes] = field(repr=False)
    keys: dict[str, bytes] = field(repr=False)


def commitment_to(seed: bytes, run: str, slot: int, site: str) -> bytes:
    """Return the 32 bytes that commit a site to its self-mask's seed; the seed's 256 random bits hide it."""
    return digest("seed", run, slot, site, seed)


def ascending(names: Sequence[str]) -> bool:
    """Return whether names ascend strictly, each thus once."""
    return all(first < second for first, second in pairwise(names))
