"""A site's vector from contribution to packed bytes, and the coordinator's sum of them, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.secagg.layout import Layout
from common.secagg.masking import PIECE, Mask, Masks, pieces
from common.secagg.packing import Packed
from common.secagg.quantise import Contribution, Quantiser, Total, read_total


def mask(layout: Layout, contribution: Contribution, masks: Sequence[Mask]) -> bytes:
    """Return the contribution, quantised, masked and packed to `layout.width` bits an element."""
    quantiser, together = Quantiser(layout, contribution), Masks(masks)
    packed = Packed(layout.elements, layout.width)
    words = np.empty(min(PIECE, layout.elements), np.uint32)
    for piece in pieces(layout.elements):
        part = words[: piece.stop - piece.start]
        quantiser.write(piece, part)
        together.apply(part)
        packed.write(piece.start, part)
    return packed.data.tobytes()


class MaskedSum:
    """The running sum of packed vectors: memory of one vector, not of a cohort."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._words = np.zeros(layout.elements, np.uint32)

    def add(self, packed: bytes) -> None:
        """Add one site's vector; SecAggError `wrong-length` where it is not one."""
        vector = Packed(self._layout.elements, self._layout.width, packed)
        for piece in pieces(self._layout.elements):
            vector.add_to(piece.start, self._words[piece])

    def total(self, corrections: Sequence[Mask], survivors: int) -> Total:
        """Return what remains once the survivors' masks are undone, checked; the sum itself is used up."""
        together = Masks(corrections)
        for piece in pieces(self._layout.elements):
            together.apply(self._words[piece])
        return read_total(self._layout, self._words, survivors)
