"""The inequalities, against the table worked out by hand and against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest

from common.secagg.numbers import (
    Numbers,
    Policy,
    default_colluders,
    default_numbers,
    default_threshold,
    least_degree,
    neighbours,
)
from tests.common.secagg.federation import refused


@pytest.mark.parametrize(
    ("holders", "threshold", "fewest"),
    [
        (3, 3, 3),  # 3 * 3 / 3
        (4, 3, 3),  # ceil(4 * 2 / 3)
        (5, 4, 3),  # ceil(4 * 2 / 3)
        (6, 5, 4),  # ceil(5 * 3 / 4)
        (7, 5, 3),  # ceil(6 * 2 / 4)
        (8, 6, 5),  # ceil(7 * 3 / 5)
        (10, 7, 5),  # ceil(9 * 3 / 6)
        (20, 14, 11),  # ceil(19 * 7 / 13)
    ],
)
def test_defaults_keep_the_promise(holders: int, threshold: int, fewest: int) -> None:
    """The fewest honest are ceil((n - n_c) (2t - n - n_c) / (t - n_c)), and the default policy agrees."""
    numbers = default_numbers(holders)
    assert (numbers.threshold, numbers.fewest_honest(default_colluders(holders))) == (threshold, fewest)
    Policy().check(numbers, unconfirmed=0)


def test_every_size_has_numbers() -> None:
    """From 3 sites to 255 the defaults pass the default policy; beyond, and for 2, no slot is formed."""
    for holders in range(3, 256):
        Policy().check(default_numbers(holders), unconfirmed=0)
    refused("too-few-honest", Policy().check, default_numbers(2), 0)
    refused("too-many-sites", Policy().check, Numbers(256, 250, 255), 0)
    refused("too-many-sites", Policy().check, Numbers(1, 1, 0), 0)


def test_a_liar_reveals_exactly_so_many() -> None:
    """Brute force up to n = 13: an assignment for `revealed` sites exists, for one more none does.

    A site is revealed by t - n_c honest holders who name it dropped; a holder names at most n - t, and never
    itself. Taking the holders with most names left for each site in turn succeeds whenever anything does.
    """
    for holders in range(3, 14):
        for colluders in range(3):
            for threshold in range((holders + colluders) // 2 + 1, holders + 1):
                if threshold <= colluders:
                    continue
                revealed = Numbers(holders, threshold, holders - 1).revealed(colluders)
                honest, needed, each = holders - colluders, threshold - colluders, holders - threshold
                assert _can_reveal(revealed, honest, needed, each)
                assert not _can_reveal(revealed + 1, honest, needed, each)


def _can_reveal(sites: int, honest: int, needed: int, each: int) -> bool:
    names_left = [each] * honest
    for site in range(sites):
        willing = [holder for holder in range(honest) if holder != site and names_left[holder]]
        willing.sort(key=lambda holder: (-names_left[holder], holder <= site))
        if len(willing) < needed:
            return False
        for holder in willing[:needed]:
            names_left[holder] -= 1
    return True


@pytest.mark.parametrize(("size", "degree"), [(8, 4), (9, 4), (10, 6), (11, 2), (9, 6)])
def test_the_graph_is_as_connected_as_its_degree(size: int, degree: int) -> None:
    """Brute force: no degree - 1 removals cut it, some degree removals do; and pairs are mutual."""
    edges = {place: neighbours(place, size, degree) for place in range(size)}
    assert all(len(peers) == degree and place not in peers for place, peers in edges.items())
    assert all(place in edges[peer] for place, peers in edges.items() for peer in peers)
    for removed in range(degree):
        assert all(_connected(edges, set(gone)) for gone in combinations(range(size), removed))
    assert not _connected(edges, set(edges[0]))


def _connected(edges: dict[int, list[int]], gone: set[int]) -> bool:
    left = set(edges) - gone
    reached, frontier = set(), [min(left)]
    while frontier:
        place = frontier.pop()
        if place not in reached:
            reached.add(place)
            frontier += [peer for peer in edges[place] if peer in left]
    return reached == left


@pytest.mark.parametrize("size", [2, 3, 4, 9, 10])
def test_neighbours_are_the_nearest_on_the_circle(size: int) -> None:
    """Half of the degree on either side, or everybody else where these meet."""
    for degree in range(size):
        near = {offset % size for offset in range(-(degree // 2), degree // 2 + 1)}
        for place in range(size):
            around = {(place + offset) % size for offset in (range(size) if degree == size - 1 else near)}
            assert neighbours(place, size, degree) == sorted(around - {place})


def test_thresholds_and_degrees_change_above_the_complete_graphs() -> None:
    """Two thirds and one up to 32 holders, four fifths and one beyond; who bears more pairs more."""
    assert [default_threshold(holders) for holders in (31, 32, 33, 34)] == [21, 22, 27, 28]
    assert default_numbers(40).degree == least_degree(Numbers(40, 33, 39), 1) == 10
    assert default_numbers(40, colluders=3).degree == least_degree(Numbers(40, 33, 39), 3) == 12


def test_a_graph_may_be_no_sparser_than_dropouts_allow() -> None:
    """For n = 100, n_c = 1: floor(99 * 19 / 80) = 23 revealed; 25 would do, 26 is even; t = 67 needs 52."""
    assert least_degree(Numbers(100, 81, 99), 1) == 26
    assert least_degree(Numbers(100, 67, 99), 1) == 52
    assert default_numbers(100).degree == 26
    assert default_numbers(32).degree == 31
    Policy().check(Numbers(100, 81, 26), 0)
    refused("sparse-graph", Policy().check, Numbers(100, 81, 25), 0)
    refused("sparse-graph", Policy().check, Numbers(100, 81, 26), 2)


def test_unconfirmed_peers_count_as_colluders() -> None:
    """Each costs honest sites and slack between the views; what a site asks decides, not what it is told."""
    numbers = default_numbers(7)  # t = 5
    Policy().check(numbers, 0)
    refused("too-few-honest", Policy().check, numbers, 1)  # ceil(5 * 1 / 3) = 2
    refused("split-views", Policy().check, numbers, 2)  # 10 > 10 does not hold
    refused("bad-threshold", Policy().check, numbers, 4)
    Policy(min_cohort=2).check(numbers, 1)
    Policy(colluders=0).check(numbers, 1)
    Policy().check(default_numbers(7, threshold=6), 1)  # ceil(5 * 3 / 4) = 4: a higher threshold bears it
    refused("bad-threshold", Policy().check, Numbers(7, 8, 6), 0)
