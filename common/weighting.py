"""How much a hospital weighs in a round's mean (`weighting` in [training]): all the same, or by its patients.

By patients the heaviest weighs at most eight times the lightest: at a thousand to one, a sum over many
hospitals would be one hospital's update.
"""

from __future__ import annotations

from common.sections import Training

PATIENTS = 16
"""Patients that one unit of weight stands for, the last ones begun."""
MOST = 8
"""The largest weight; the smallest is 1."""


def weight_of(training: Training, patients: int) -> int:
    """Return the weight of a hospital that trains on so many patients."""
    return min(most_weight(training), max(1, -(-patients // PATIENTS)))


def most_weight(training: Training) -> int:
    """Return the largest weight that any hospital has."""
    return MOST if training.weighting == "patients" else 1
