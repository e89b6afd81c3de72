"""Sums over hospitals' columns: exact to the last bit, whatever the numbers, and refused where impossible."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from common import columns
from common.columns import Statistics
from common.errors import DataError, WireError
from common.secagg.layout import Layout
from common.secagg.quantise import Contribution, Quantiser, read_total

Values = NDArray[np.float64]


def over(hospitals: Sequence[Values]) -> Statistics:
    """Return the statistics that the hospitals' vectors add up to."""
    vectors = [columns.sums(values).double() for values in hospitals]
    return columns.statistics(torch.stack(vectors).sum(0))


def exactly(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and deviation (n - 1) by two passes over exact fractions: no sum of squares."""
    fractions = [Fraction(value) for value in values]
    mean = sum(fractions) / len(fractions)
    variance = sum((value - mean) ** 2 for value in fractions) / (len(fractions) - 1)
    return float(mean), float(variance) ** 0.5


@pytest.mark.parametrize(
    "column",
    [
        [1e9, 1e9 + 1e-6, 1e9 + 2e-6, 1e9 - 3e-6],  # a sum of squares in float64 has lost the variance
        [1e-6, 2e-6, -3.5e-6],
        [1e-6, 1e9, -1e9, 0.0],
        [2.0**60, -(2.0**60), 2.0**-60],
        [0.1, 0.2, 0.3, 0.1, 0.2],
        [-5.0, -7.0],
    ],
)
def test_awkward_numbers_keep_their_mean_and_deviation(column: list[float]) -> None:
    """Against exact fractions: only a value's own rounding to 2^-60, below 1e-18, may show."""
    values = np.array(column)[:, None]
    found = over([values[:1], values[1:]])
    mean, std = exactly(column)
    assert float(found.mean[0]) == pytest.approx(mean, rel=1e-15, abs=1e-18)
    assert float(found.std[0]) == pytest.approx(std, rel=1e-12)


def test_a_sum_of_squares_in_floating_point_would_not_do() -> None:
    """What the first case guards against: the textbook formula is off by half the variance or more."""
    values = np.array([1e9, 1e9 + 1e-6, 1e9 + 2e-6, 1e9 - 3e-6])
    textbook = ((values**2).sum() - values.sum() ** 2 / 4) / 3
    variance = exactly(values.tolist())[1] ** 2
    assert abs(textbook - variance) >= variance / 2


def test_columns_that_never_vary_or_were_never_measured_become_0() -> None:
    """Constant everywhere, missing at one hospital, missing everywhere, one value in all."""
    lost = np.nan
    here = np.array([[0.1, lost, lost, 4.0], [0.1, lost, lost, lost]])
    there = np.array([[0.1, 1.0, lost, lost], [0.1, 3.0, lost, lost]])
    found = over([here, there])
    assert found.std.tolist() == [0.0, 2**0.5, 0.0, 0.0]
    assert found.mean.tolist() == [pytest.approx(0.1, abs=1e-18), 2.0, 0.0, 4.0]
    standard = found.standardise(np.concatenate([here, there]))
    expected = [0.0, 0.0, -(0.5**0.5), 0.5**0.5]
    np.testing.assert_allclose(standard[:, 1], expected, rtol=1e-15)
    assert not standard[:, [0, 2, 3]].any()


def test_a_constant_column_that_differs_between_hospitals_varies() -> None:
    """What each hospital by itself would set to 0 tells the two apart: -1, 1 over four values, n - 1 = 3."""
    found = over([np.full((2, 1), -1.0), np.full((2, 1), 1.0)])
    assert found.mean.tolist() == [0.0]
    assert float(found.std[0]) == pytest.approx((4 / 3) ** 0.5, rel=1e-15)


@given(
    arrays(np.float64, (6, 2), elements=st.floats(-(2.0**60), 2.0**60, allow_subnormal=False)),
    st.integers(1, 5),
)
def test_how_rows_are_dealt_over_hospitals_does_not_show(values: Values, cut: int) -> None:
    """One hospital or two, in either order: the same bits."""
    together = over([values]).to_json()
    assert over([values[:cut], values[cut:]]).to_json() == together
    assert over([values[cut:], values[:cut]]).to_json() == together


@given(arrays(np.float64, (5, 2), elements=st.floats(-1e6, 1e6)), st.binary(min_size=32, max_size=32))
def test_secure_aggregations_grid_rounds_no_digit(values: Values, key: bytes) -> None:
    """Whatever the noise that decides its rounding, a vector comes back as it went in, digit for digit."""
    vector = columns.sums(values)
    layout = Layout(len(vector), 255, columns.CLIP_NORM, columns.CLIP_NORM, columns.BITS)
    assert layout.step == 1
    words = np.zeros(layout.words, np.uint64)
    Quantiser(layout, Contribution(vector.numpy(), 1, {}, key)).write(slice(0, layout.words), words)
    assert torch.equal(torch.from_numpy(read_total(layout, words, 1).mean), vector.double())


def test_one_hospitals_own_statistics_are_the_same_formula() -> None:
    """Sums over a single hospital agree with its own statistics in floating point."""
    values = np.random.default_rng(0).normal(50, 10, (40, 3))
    values[3, 1] = np.nan
    own, summed = Statistics.of(values), over([values])
    np.testing.assert_allclose(own.mean, summed.mean, rtol=1e-14)
    np.testing.assert_allclose(own.std, summed.std, rtol=1e-14)


def test_statistics_travel_bit_for_bit() -> None:
    """The text gives every bit back."""
    given_ = Statistics(np.array([1 / 3, -1e-300, 2.0**60]), np.array([0.1, 0.0, 1e300]))
    again = Statistics.from_json(given_.to_json())
    assert again.mean.tobytes() == given_.mean.tobytes()
    assert again.std.tobytes() == given_.std.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"mean": [1]}',
        '{"mean": [1], "std": [1, 2]}',
        '{"mean": [1], "std": [-1]}',
        '{"mean": [NaN], "std": [1]}',
        '{"mean": ["a"], "std": [1]}',
        '{"mean": 1, "std": 1}',
    ],
)
def test_made_up_statistics_are_refused(text: str) -> None:
    """Whatever a coordinator puts in their place."""
    with pytest.raises(WireError, match="statistics"):
        Statistics.from_json(text)


def test_what_can_be_summed_exactly() -> None:
    """0, not measured, and 2^-60 to 2^60 in size."""
    values = np.array([0.0, np.nan, 2.0**60, -(2.0**-60), 2.0**61, 2.0**-61, 1e-300])
    assert columns.summable(values).tolist() == [True] * 4 + [False] * 3


def test_the_digits_hold_the_largest_sums() -> None:
    """2^24 rows of 2^60: a sum of 2^144 and squares of 2^264, one bit more than the places below them."""
    count, total, squares = 2**24, 2**144, 2**264
    for number, digits in zip((count, total, squares), columns.DIGITS, strict=True):
        assert number < 2 ** (columns.DIGIT * digits)


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what the digits hold."""
    monkeypatch.setattr(columns, "MOST_ROWS", 3)
    with pytest.raises(DataError, match="has 4 cases"):
        columns.sums(np.zeros((4, 1)))


@pytest.mark.parametrize("told", [(-1, 0, 0), (0, 1, 0), (2, 3, 4), (2, 0, -1)])
def test_sums_that_no_values_have_are_refused(told: tuple[int, int, int]) -> None:
    """A negative count, a sum of nothing, count times squares below the sum's square, negative squares."""
    numbers = [
        digit
        for number, digits in zip(told, columns.DIGITS, strict=True)
        for digit in columns._cut(number, digits)
    ]
    with pytest.raises(WireError, match="no values have the sums"):
        columns.statistics(torch.tensor(numbers, dtype=torch.float64))
