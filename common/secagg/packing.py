"""Words on the wire: the low bytes of each, constant width, a few array operations per piece.

A word's bytes are cut into planes of 8, 4, 2 and 1 bytes (7 = 4 + 2 + 1), lowest first, and the planes stored
one after another.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

from common.secagg.reasons import Reason, refusal

Words = np.ndarray


class Packed:
    """`size` low bytes, 1 to 8, of each of some words, written or read piece by piece."""

    def __init__(self, words: int, size: int, data: bytes | None = None) -> None:
        if data is not None and len(data) != words * size:
            raise refusal(Reason.WRONG_LENGTH)
        self.data = np.empty(words * size, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        self._planes = []
        start = 0
        for width in (8, 4, 2, 1):
            if size & width:
                stored = self.data[words * start : words * (start + width)].view(f"<u{width}")
                self._planes.append((stored, np.uint64(8 * start)))
                start += width

    def write(self, piece: slice, words: UInt64[Words, "word"]) -> None:
        """Store the low bytes of `words` at `piece`."""
        for stored, shift in self._planes:
            stored[piece] = words >> shift if shift else words

    def add_to(self, piece: slice, words: UInt64[Words, "word"]) -> None:
        """Add what is stored at `piece` to `words` in place, modulo 2^64."""
        for stored, shift in self._planes:
            words += np.left_shift(stored[piece], shift, dtype=np.uint64) if shift else stored[piece]
