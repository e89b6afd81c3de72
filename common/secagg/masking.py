"""Masks: keystreams of AES-256 in counter mode under keys that are used once, added modulo 2^64.

Vectors are 64-bit words, each with several numbers side by side (see `layout`); addition wraps. A key serves
one vector, so that its counter may start at zero (NIST SP 800-38A, 6.5). The cipher is fixed by
`encoding.VERSION`, never agreed upon, and its name is in every mask's derivation. All masks are added to one
piece of the vector before the next is touched: the piece stays in the processor's cache, and memory is two
pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import UInt, UInt64

from common.secagg.agreement import derived_key, shared_key

CIPHER = "AES-256-CTR"
PIECE = 2**15
"""Words of a vector worked on at a time: 256 KiB."""

Words = np.ndarray


class Keystream:
    """The AES-256-CTR keystream of a 32-byte key, read from its start as little-endian numbers."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = memoryview(_ZEROS)

    def read_into(self, words: UInt[Words, "number"]) -> None:
        """Fill `words`, contiguous and at most 8 PIECE bytes, with the next of the keystream."""
        self._encryptor.update_into(self._zeros[: words.nbytes], words.data.cast("B"))


_ZEROS = bytes(8 * PIECE)


@dataclass(frozen=True)
class Mask:
    """One mask: its key, and whether it is taken away instead of added."""

    key: bytes = field(repr=False)
    negative: bool = False

    def opposite(self) -> Mask:
        """Return the mask that undoes this one."""
        return Mask(self.key, not self.negative)


def self_mask(seed: bytes, run: str, slot: int, agreed: bytes, site: str) -> Mask:
    """Return the mask of a site alone, from its seed b and the D it agreed to."""
    return Mask(derived_key(seed, "self mask", CIPHER, run, slot, agreed, site))


def pair_mask(s: bytes, site: str, peer: str, public: bytes, run: str, slot: int, agreed: bytes) -> Mask:
    """Return `site`'s mask with `peer`, from its private s and the peer's public; the peer's is the opposite.

    Only two sites that agreed to the same D have masks that cancel.
    """
    first, second = sorted((site, peer))
    key = shared_key(s, public, peer, "pair mask", CIPHER, run, slot, agreed, first, second)
    return Mask(key, negative=site > peer)


class Masks:
    """Several masks applied together, piece after piece from the start of a vector."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self._streams = [(Keystream(mask.key), np.subtract if mask.negative else np.add) for mask in masks]
        self._words = np.empty(PIECE, "<u8")

    def apply(self, piece: UInt64[Words, "word"]) -> None:
        """Add every mask's next words to `piece` in place, modulo 2^64."""
        words = self._words[: len(piece)]
        for stream, operation in self._streams:
            stream.read_into(words)
            operation(piece, words, out=piece)


def pieces(length: int) -> Iterator[slice]:
    """Yield the slices of a vector that are worked on one by one."""
    for start in range(0, length, PIECE):
        yield slice(start, min(start + PIECE, length))
