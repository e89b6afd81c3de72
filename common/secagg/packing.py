"""k-bit numbers on the wire: constant width, no bit lost, a few array operations per piece.

The k bits of every number are cut into planes of 16, 8, 4, 2 and 1 bits (21 = 16 + 4 + 1), lowest bits
first, and the planes stored one after another, each filled up to a whole byte.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt32

from common.secagg.reasons import Reason, refusal

WIDEST = 32
Words = np.ndarray


def packed_size(elements: int, width: int) -> int:
    """Return the bytes that `elements` numbers of `width` bits take."""
    return sum(_plane_size(elements, bits) for bits in _planes(width))


class Packed:
    """A packed vector, written or read piece by piece; every piece but the last a multiple of 8 long."""

    def __init__(self, elements: int, width: int, data: bytes | None = None) -> None:
        size = packed_size(elements, width)
        if data is not None and len(data) != size:
            raise refusal(Reason.WRONG_LENGTH)
        self.data = np.zeros(size, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        self._planes = []
        start, shift = 0, 0
        for bits in _planes(width):
            end = start + _plane_size(elements, bits)
            self._planes.append((bits, shift, self.data[start:end]))
            start, shift = end, shift + bits

    def write(self, start: int, words: UInt32[Words, "element"]) -> None:
        """Store the low `width` bits of `words` as elements `start` onwards."""
        for bits, shift, plane in self._planes:
            part = words >> np.uint32(shift) if shift else words
            first, last = start * bits // 8, _plane_size(start + len(words), bits)
            if bits >= 8:
                plane[first:last].view(f"<u{bits // 8}")[:] = part  # keeps the low bits
            else:
                plane[first:last] = _join(part.astype(np.uint8) & np.uint8((1 << bits) - 1), bits)

    def add_to(self, start: int, words: UInt32[Words, "element"]) -> None:
        """Add elements `start` onwards to `words` in place, modulo 2^32."""
        for bits, shift, plane in self._planes:
            first, last = start * bits // 8, _plane_size(start + len(words), bits)
            stored = plane[first:last]
            part = stored.view(f"<u{bits // 8}") if bits >= 8 else _cut(stored, bits)[: len(words)]
            words += np.left_shift(part, shift, dtype=np.uint32) if shift else part


def _planes(width: int) -> list[int]:
    """Return the planes' widths in bits, widest and lowest first."""
    if not 1 <= width <= WIDEST:
        raise refusal(Reason.OVERFLOW)
    return [16] * (width // 16) + [bits for bits in (8, 4, 2, 1) if width & bits]


def _plane_size(elements: int, bits: int) -> int:
    return (elements * bits + 7) // 8


def _join(small: np.ndarray, bits: int) -> np.ndarray:
    """Return bytes that each hold 8 / bits numbers, the first in the lowest bits."""
    if bits == 1:
        return np.packbits(small, bitorder="little")
    lanes = 8 // bits
    if len(small) % lanes:
        small = np.concatenate([small, np.zeros(-len(small) % lanes, np.uint8)])
    joined = small[::lanes].copy()
    for lane in range(1, lanes):
        joined |= small[lane::lanes] << np.uint8(lane * bits)
    return joined


def _cut(stored: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers in bytes that `_join` made, with what fills up the last byte."""
    if bits == 1:
        return np.unpackbits(stored, bitorder="little")
    lanes = 8 // bits
    small = np.empty(len(stored) * lanes, np.uint8)
    for lane in range(lanes):
        small[lane::lanes] = stored >> np.uint8(lane * bits) & np.uint8((1 << bits) - 1)
    return small
