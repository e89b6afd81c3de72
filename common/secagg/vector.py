"""A site's vector from contribution to packed bytes, and the coordinator's sum of them, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.secagg.layout import Layout
from common.secagg.masking import PIECE, Mask, Masks, pieces
from common.secagg.packing import Packed
from common.secagg.quantise import Contribution, Quantiser, Total, read_total


def mask(layout: Layout, contribution: Contribution, masks: Sequence[Mask]) -> bytes:
    """Return the contribution, quantised, masked and packed."""
    quantiser, together = Quantiser(layout, contribution), Masks(masks)
    packed = Packed(layout.words, layout.word_bytes)
    words = np.empty(PIECE, np.uint64)
    for piece in pieces(layout.words):
        part = words[: piece.stop - piece.start]
        quantiser.write(piece, part)
        together.apply(part)
        packed.write(piece, part)
    return packed.data.tobytes()


class MaskedSum:
    """The running sum of packed vectors: memory of one vector, not of a cohort."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._words = np.zeros(layout.words, np.uint64)

    def add(self, packed: bytes) -> None:
        """Add one site's vector; SecAggError `wrong-length` where it is not one."""
        vector = Packed(self._layout.words, self._layout.word_bytes, packed)
        for piece in pieces(self._layout.words):
            vector.add_to(piece, self._words[piece])

    def total(self, corrections: Sequence[Mask], survivors: int) -> Total:
        """Return what remains once the survivors' masks are undone, checked; the sum itself is used up."""
        together = Masks(corrections)
        for piece in pieces(self._layout.words):
            together.apply(self._words[piece])
        return read_total(self._layout, self._words, survivors)
