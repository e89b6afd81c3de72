"""Means of figures some of which are not defined (NaN): over what is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    mean: NDArray[np.float64] = np.where(known, values, 0.0).sum(-1) / np.where(count, count, np.nan)
    return mean


def weighted_mean_of_known(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted mean of what is known, by replicate; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: NDArray[np.float64] = weights[:, known] @ values[known] / weights[:, known].sum(1)
    return mean
