"""The shape and the bounds of what every site of a slot masks, from a training's settings."""

from __future__ import annotations

from common.algorithms.algorithm import MOST_LOSS, longest_coordinate, longest_delta
from common.secagg.layout import Layout, Metric
from common.sections import Training
from common.weighting import most_weight

WIDEST = 32
"""Bits of a sum at most."""


def layout_of(training: Training, bits: int, parameters: int, holders: int, clip: float = 0.0) -> Layout:
    """Return the shape and bounds of every vector of a slot of so many holders, in a round with this clip."""
    return Layout(
        parameters=parameters,
        sites=holders,
        clip_norm=longest_delta(training, parameters, clip),
        coordinate_range=longest_coordinate(training, clip),
        bits=bits,
        max_weight=min(most_weight(training), max(1, 2 ** (WIDEST - bits) // holders)),
        metrics=(
            Metric("loss-sum", 0.0, MOST_LOSS * training.episodes, 1e-6),
            Metric("episodes", 0.0, float(training.episodes)),
            Metric("within", 0.0, 1.0),
        ),
    )
