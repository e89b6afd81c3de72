"""The shape and the bounds of what every site of a slot masks, from what the site is asked.

A coordinator sends them in its plan, and a hospital works them out for itself and takes no others: clipping
and rounding act on each hospital alone, so sums of the same updates within other bounds tell them apart.
"""

from __future__ import annotations

from common import columns
from common.algorithms.algorithm import MOST_LOSS, longest_coordinate, longest_delta
from common.config import from_json
from common.secagg.layout import Layout, Metric
from common.sections import Training
from common.weighting import most_weight
from common.wire import Instruction

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


def exact(training: Training) -> Training:
    """Return the settings under which sums of columns travel as deltas do, and lose nothing."""
    bounds = {"clip_norm": columns.CLIP_NORM, "weighting": "uniform", "episodes": 1}
    return training.model_copy(update=bounds)


def layout_asked(instruction: Instruction, parameters: int, holders: int) -> Layout:
    """Return the one layout that goes with a train message to so many holders.

    Sums over columns have the same bounds whatever the message says: nothing is clipped there.
    """
    config = from_json(instruction.config)
    training = config.training_of(instruction.algorithm)
    if instruction.column_sums:
        return layout_of(exact(training), columns.BITS, parameters, holders)
    return layout_of(training, config.secure_aggregation.bits, parameters, holders, instruction.clip_norm)
