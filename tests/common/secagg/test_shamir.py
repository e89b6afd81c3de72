"""Secret sharing: any t shares give the secret, t - 1 say nothing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.recover import MOST_TRIES, Recovery
from common.secagg.shamir import combine, evaluate, split
from tests.common.secagg.federation import refused

GOLDEN = Path(__file__).parent / "golden" / "shamir.json"


@given(st.binary(min_size=1, max_size=40), st.integers(2, 40), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, holders: int, data: st.DataObject) -> None:
    """Whichever t holders answer, in whatever order."""
    threshold = data.draw(st.integers(1, holders))
    shares = split(secret, threshold, holders)
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    assert combine([shares[place] for place in chosen], [place + 1 for place in chosen]) == secret


def test_fewer_shares_say_nothing() -> None:
    """Exhaustive for one byte, t = 2 and 3: over all coefficients, t - 1 shares are uniform.

    With t = 2 a share is secret + a x: as a runs through the field, so does the share. With t = 3 two shares
    are secret + a x + b x^2 at two points: all 65,536 pairs occur, each once. Nothing depends on the secret.
    """
    every = np.arange(256, dtype=np.uint8)
    for secret in (0, 1, 77, 255):
        constant = np.full(256, secret, np.uint8)
        shares = evaluate(np.stack([constant, every]), np.array([1, 2, 255], np.uint8))
        assert all(np.array_equal(np.sort(share), every) for share in shares)
        linear, square = (grid.reshape(-1) for grid in np.meshgrid(every, every))
        constant = np.full(65536, secret, np.uint8)
        pairs = evaluate(np.stack([constant, linear, square]), np.array([3, 200], np.uint8)).astype(int)
        assert len(np.unique(pairs[0] * 256 + pairs[1])) == 65536


@given(st.binary(min_size=4, max_size=4), st.integers(2, 12), st.data())
def test_every_secret_fits_too_few_shares(secret: bytes, threshold: int, data: st.DataObject) -> None:
    """Any t - 1 real shares and any other secret lie on a polynomial of degree t - 1."""
    shares = split(secret, threshold, threshold + 2)[: threshold - 1]
    points = list(range(1, threshold))
    lie = data.draw(st.binary(min_size=4, max_size=4))
    next_share = combine([*shares, lie], [*points, 0], at=threshold)
    assert combine([*shares, next_share], [*points, threshold]) == lie


def test_multiplication_is_that_of_the_standard() -> None:
    """FIPS 197, section 4.2: {57} x {83} = {c1}, {57} x {13} = {fe}; here as a line's value at a point."""
    line = np.array([[0], [0x57]], np.uint8)
    assert evaluate(line, np.array([0x83, 0x13], np.uint8))[:, 0].tolist() == [0xC1, 0xFE]


def test_largest_circle() -> None:
    """255 holders, the most there are points for, and one more is refused."""
    secret = bytes(range(64))
    shares = split(secret, 204, 255)
    assert combine(shares[51:], list(range(52, 256))) == secret
    for threshold, holders, reason in (
        (2, 256, "too-many-sites"),
        (1, 1, "too-many-sites"),
        (4, 3, "bad-threshold"),
    ):
        with pytest.raises(SecAggError) as caught:
            split(secret, threshold, holders)
        assert caught.value.reason == reason


def test_shares_never_change() -> None:
    """Known answers: coefficients to shares, and every three of the five shares back."""
    golden = json.loads(GOLDEN.read_text())
    rows = [list(bytes.fromhex(row)) for row in golden["coefficients"]]
    shares = evaluate(np.array(rows, np.uint8), np.arange(1, 6, dtype=np.uint8))
    assert [share.tobytes().hex() for share in shares] == golden["shares"]
    for chosen in combinations(range(5), 3):
        told = combine([bytes.fromhex(golden["shares"][place]) for place in chosen], [p + 1 for p in chosen])
        assert told.hex() == golden["coefficients"][0]


def test_shares_are_for_two_to_255_holders_of_whom_one_to_all_are_needed() -> None:
    """At both ends, and one beyond."""
    for threshold, holders in ((1, 2), (2, 2), (2, 255), (255, 255)):
        shares = split(b"secret", threshold, holders)
        assert len(shares) == holders
        assert combine(shares[:threshold], range(1, threshold + 1)) == b"secret"
    for holders in (1, 256):
        refused("too-many-sites", split, b"secret", 1, holders)
    for threshold in (0, 4):
        refused("bad-threshold", split, b"secret", threshold, 3)


def recovered(threshold: int, wrong: set[str], holders: str = "abcdefgh") -> tuple[bytes, set[str]]:
    """Return a secret found from shares of which some are wrong, and who is named for it."""
    points = {name: place for place, name in enumerate(holders, start=1)}
    shares = dict(zip(holders, split(b"secret", threshold, len(holders)), strict=True))
    shares |= {name: bytes([shares[name][0] ^ 1]) + shares[name][1:] for name in wrong}
    recovery = Recovery(threshold)
    return recovery.secret("x", shares, points, lambda secret: secret == b"secret"), recovery.liars


def test_liars_are_named_within_the_unique_decoding_radius_and_beyond_it_nobody() -> None:
    """Of m answers (m - t) / 2 wrong ones are provably so; one more, and the secret is right all the same."""
    assert recovered(4, {"a"}) == (b"secret", {"a"})
    assert recovered(4, {"a", "h"}) == (b"secret", {"a", "h"})
    assert recovered(4, {"a", "b", "h"}) == (b"secret", set())
    assert recovered(2, {"a"}, "abc") == (b"secret", set())
    assert recovered(2, {"b"}, "abcd") == (b"secret", {"b"})


def test_a_search_for_a_secret_ends() -> None:
    """Where no shares fit, after a bounded number of tries, and whoever dealt is named."""
    tries: list[bytes] = []

    def never(secret: bytes) -> bool:
        tries.append(secret)
        return False

    names = [f"h{place:02}" for place in range(40)]
    shares = dict.fromkeys(names, b"x")
    points = {name: place for place, name in enumerate(names, start=1)}
    refused("unrecoverable", Recovery(20).secret, "dealer", shares, points, never, by="dealer")
    assert len(tries) == MOST_TRIES
