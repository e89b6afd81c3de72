"""Numeric columns of a table: what standardises them, and sums of them over hospitals that are exact.

A hospital sends per column the count, the sum and the sum of squares of what was measured, in whole numbers
of 2^-60 and 2^-120. Cut into small digits they travel as a delta does: with the bounds below, secure
aggregation's grid has a step of 1 and rounds nothing, so the coordinator has the same sums in plain and
securely. They stay whole numbers until mean and deviation are taken; no variance is lost by cancellation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from common.errors import DataError, WireError

BITS = 24
"""Bits to which secure aggregation rounds a digit; the most that it has."""
CLIP_NORM = 2.0 ** (BITS - 1) - 1
"""Bound of a digit and of a vector's norm: half of secure aggregation's levels, so that its step is 1."""
DIGIT = 7
"""Bits of a digit: no vector of fewer than 2^32 digits is longer than `CLIP_NORM`."""
EXPONENT = 60
"""A value is a whole number of 2^-60 and at most 2^60 in size."""
MOST_ROWS = 2**24
DIGITS = (4, 21, 38)
"""Digits of a column's count, sum and sum of squares: for 2^24 values, 24, 144 and 264 bits."""
NUMBERS = sum(DIGITS)
"""Numbers that a column takes in a vector."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (n - 1) of numeric columns; a column that never varies has deviation 0."""

    mean: NDArray[np.float64]
    """`[column]`; 0 where nothing was measured."""
    std: NDArray[np.float64]
    """`[column]`."""

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Statistics:
        """Return the statistics of one hospital's `[row, column]`, NaN where not measured."""
        mean, std = np.zeros((2, values.shape[1]))
        for index, column in enumerate(values.T):
            measured = column[~np.isnan(column)]
            if len(measured):
                mean[index] = measured.mean()
            if len(measured) > 1 and np.ptp(measured):
                std[index] = measured.std(ddof=1)
        return cls(mean, std)

    def standardise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `[row, column]` less its mean, in deviations; not measured, or without variance: 0."""
        standard = (values - self.mean) / np.where(self.std > 0, self.std, np.nan)
        return np.where(np.isnan(standard), 0.0, standard)

    def to_json(self) -> str:
        """Return the text that travels and is kept; it gives every bit back."""
        return json.dumps({"mean": self.mean.tolist(), "std": self.std.tolist()})

    @classmethod
    def from_json(cls, text: str) -> Statistics:
        """Return what `to_json` wrote; WireError where it is something else."""
        try:
            told = json.loads(text)
            mean, std = (np.array(told[name], np.float64) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise WireError("statistics must hold mean and std; update this node.") from error
        fits = mean.ndim == 1 and mean.shape == std.shape
        if not (fits and np.isfinite([mean, std]).all() and (std >= 0).all()):
            raise WireError("statistics must be a finite mean and a deviation of 0 or more for each column.")
        return cls(mean, std)


def summable(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which values can be summed exactly: those not measured, 0, and 2^-60 to 2^60 in size."""
    size, bound = np.abs(values), 2.0**EXPONENT
    fits: NDArray[np.bool_] = np.isnan(size) | (size == 0) | ((size >= 1 / bound) & (size <= bound))
    return fits


def sums(values: NDArray[np.float64]) -> Float[Tensor, "number"]:
    """Return the vector that a hospital sends for its summable `[row, column]`: digits, float32.

    DataError: there are more rows than the digits are made for.
    """
    if len(values) > MOST_ROWS:
        raise DataError(f"has {len(values)} cases; columns are summed over at most {MOST_ROWS} a hospital.")
    numbers: list[int] = []
    for column in values.T:
        scaled = np.rint(np.ldexp(column[~np.isnan(column)], EXPONENT))
        whole = [int(value) for value in scaled]
        column_sums = (len(whole), sum(whole), sum(value * value for value in whole))
        for number, digits in zip(column_sums, DIGITS, strict=True):
            numbers += _cut(number, digits)
    return torch.tensor(numbers, dtype=torch.float32)


def statistics(total: Float[Tensor, "number"]) -> Statistics:
    """Return the statistics over all hospitals from the sum of their vectors.

    WireError: no values have such sums.
    """
    columns = [
        _mean_and_std(*_joined(numbers.tolist()))
        for numbers in torch.split(total.double().round().long(), NUMBERS)
        if len(numbers)
    ]
    mean, std = np.array(columns, np.float64).reshape(-1, 2).T
    return Statistics(mean, std)


def _cut(number: int, digits: int) -> list[int]:
    """Return a whole number's digits, lowest first, each with its sign."""
    sign, size = (-1 if number < 0 else 1), abs(number)
    return [sign * (size >> DIGIT * place & (1 << DIGIT) - 1) for place in range(digits)]


def _joined(numbers: Sequence[int]) -> tuple[int, int, int]:
    """Return a column's count, sum and sum of squares."""
    count, total, squares = (
        sum(digit << DIGIT * place for place, digit in enumerate(numbers[start : start + digits]))
        for start, digits in zip((0, DIGITS[0], DIGITS[0] + DIGITS[1]), DIGITS, strict=True)
    )
    return count, total, squares


def _mean_and_std(count: int, total: int, squares: int) -> tuple[float, float]:
    if count < 0 or count * squares < total**2:
        raise WireError(
            "no values have the sums over a column that hospitals sent; one of them runs another version, "
            'or lies. Find it, or set data.standardise = "site".'
        )
    mean = float(Fraction(total, count << EXPONENT)) if count else 0.0
    if count < 2:
        return mean, 0.0
    variance = Fraction(count * squares - total**2, count * (count - 1) << 2 * EXPONENT)
    return mean, math.sqrt(variance)
