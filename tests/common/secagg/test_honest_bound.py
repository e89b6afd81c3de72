"""What every sum that opens covers at least: the check that a reader can run, for few sites; its teeth."""

from __future__ import annotations

import pytest

from benchmarks.honest_bound import View, connected, counted, exhaustive, outcomes, smallest_opened
from common.secagg.numbers import Numbers


def test_no_smaller_sum_opens_whatever_is_shown_to_whom() -> None:
    """Up to four holders, every t, n_c and graph that a site accepts; the bound is reached each time."""
    rows = exhaustive(4)
    assert len(rows) > 10
    assert all(found == claimed for _, _, claimed, found in rows)


@pytest.mark.parametrize("holders", [5, 32, 33, 40])
def test_counting_agrees_for_more(holders: int) -> None:
    """For the default t, and every n_c that a site accepts; the graph stays in one piece."""
    rows = counted(holders)
    assert rows
    for numbers, _, claimed, fewest, removed in rows:
        assert fewest == claimed
        assert connected(numbers, removed)


def test_two_views_would_open_a_single_site() -> None:
    """Without 2 t > n + n_c: four sites, t = 2, two plans of two signers; both secrets of one come out."""
    views = (View((0, 1), (2, 3), 0), View((2, 3), (0, 1), 0))
    assert any(known_s & known_b for known_s, known_b in outcomes(views, 2, 0))
    with pytest.raises(AssertionError):
        smallest_opened(Numbers(4, 2, 3), 0)


def test_a_sparser_graph_would_fall_apart() -> None:
    """Six, t = 5, one colluder: four honest sites where degree 4 is, fewer where it is 2."""
    assert smallest_opened(Numbers(6, 5, 4), 1) == 4
    assert smallest_opened(Numbers(6, 5, 2), 1) < 4
    assert not connected(Numbers(6, 5, 2), 2)
