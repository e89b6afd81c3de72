"""Shamir's secret sharing, bytewise over GF(256) (Shamir 1979; field polynomial of FIPS 197, section 4.2).

Every byte of a secret is the value at 0 of its own random polynomial of degree t - 1; holder number x,
1 to 255, gets the values at x. Any t shares give the secret, t - 1 say nothing about it: for every
candidate there is exactly one polynomial through them.

Points x and Lagrange weights are public; secrets and shares meet them only in shifts, ands and exclusive
ors over whole arrays, never in a table look-up, a branch or an index, so neither timing nor cache follows a
secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8

from common.secagg.entropy import fresh
from common.secagg.reasons import Reason, refusal

MOST_HOLDERS = 255
Bytes = np.ndarray


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Return one share, as long as the secret, for each of holders 1 to n; any `threshold` suffice."""
    if not 2 <= holders <= MOST_HOLDERS:
        raise refusal(Reason.TOO_MANY_SITES)
    if not 1 <= threshold <= holders:
        raise refusal(Reason.BAD_THRESHOLD)
    chance = np.frombuffer(fresh((threshold - 1) * len(secret)), np.uint8).reshape(threshold - 1, len(secret))
    coefficients = np.concatenate([np.frombuffer(secret, np.uint8)[None], chance])
    points = np.arange(1, holders + 1, dtype=np.uint8)
    return [row.tobytes() for row in evaluate(coefficients, points)]


def combine(shares: Sequence[bytes], points: Sequence[int], *, at: int = 0) -> bytes:
    """Return the polynomials' values at `at` (0: the secret) from as many shares as the threshold."""
    rows = np.frombuffer(b"".join(shares), np.uint8).reshape(len(shares), -1)
    weights = np.array(_lagrange(tuple(points), at), np.uint8)[:, None]
    value: Bytes = np.bitwise_xor.reduce(_multiply(rows, weights), axis=0)
    return value.tobytes()


def evaluate(
    coefficients: UInt8[Bytes, "degree byte"], points: UInt8[Bytes, "holder"]
) -> UInt8[Bytes, "holder byte"]:
    """Return the polynomials' values at public points, by Horner's rule from the highest coefficient."""
    values = np.zeros((len(points), coefficients.shape[1]), np.uint8)
    for coefficient in coefficients[::-1]:
        values = _multiply(values, points[:, None]) ^ coefficient
    return values


def _multiply(secret: UInt8[Bytes, "row byte"], public: UInt8[Bytes, "row 1"]) -> UInt8[Bytes, "row byte"]:
    """Return the products in GF(256): a doubling of `secret` for each bit of `public`."""
    product = np.zeros_like(secret)
    for bit in range(8):
        product ^= secret * ((public >> np.uint8(bit)) & np.uint8(1))
        secret = (secret << np.uint8(1)) ^ ((secret >> np.uint8(7)) * np.uint8(0x1B))
    return product


@lru_cache(maxsize=1024)
def _lagrange(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return the public weights with which values at `points` add up to the value at `at`."""
    weights = []
    for own in points:
        weight = 1
        for other in points:
            if other != own:
                weight = _times(weight, _times(other ^ at, _inverse(other ^ own)))
        weights.append(weight)
    return tuple(weights)


@lru_cache(maxsize=65536)
def _times(left: int, right: int) -> int:
    """Return the product of two public elements."""
    product = 0
    while right:
        product ^= left if right & 1 else 0
        left = left << 1 ^ (0x11B if left & 0x80 else 0)
        right >>= 1
    return product


@lru_cache(maxsize=256)
def _inverse(element: int) -> int:
    """Return the inverse of a public element other than 0: its 254th power."""
    if not element:
        raise ValueError("0 has no inverse: two holders have the same point.")
    power = 1
    for _ in range(254):
        power = _times(power, element)
    return power
