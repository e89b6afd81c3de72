"""What chance decides: every random stream is named by what it is for, never by when it is drawn.

One seed in the configuration decides what a coordinator may know: initial weights and cohorts. Draws over a
hospital's patients follow from the hospital's own secret instead.
"""

from __future__ import annotations

import hashlib
import hmac
import json

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

WORD = 8
"""Bytes behind one drawn number: 64 bits, so that a remainder or a tie is off by less than 2^-40."""


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive(seed, "train", site, server_round)`."""
    name = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose; the same purpose always draws the same.

    It takes 32 bits of the seed alone: what is to be kept from a coordinator comes from `Draws`.
    """
    return torch.Generator().manual_seed(derive(seed, *purpose))


class Draws:
    """A stream of random choices that follows from a key; without the key it cannot be told from chance.

    The stream is ChaCha20's, and a purpose has a key of its own by HMAC-SHA256.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        algorithm = algorithms.ChaCha20(_mac(key, "stream"), bytes(16))
        self._stream = Cipher(algorithm, mode=None).encryptor()

    @classmethod
    def of_seed(cls, seed: int, *purpose: str | int) -> Draws:
        """Return what whoever knows the seed can draw as well: for attacks, benchmarks and tests."""
        return cls(hashlib.sha256(str(seed).encode()).digest()).child(*purpose)

    def child(self, *purpose: str | int) -> Draws:
        """Return the draws for one purpose, whatever has been drawn here before."""
        return Draws(_mac(self._key, "child", *purpose))

    def permutation(self, count: int) -> Int[Tensor, "count"]:
        """Return the numbers from 0 to `count` - 1 in random order."""
        return torch.from_numpy(np.argsort(self._words(count), kind="stable"))

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        """Return `count` random whole numbers from 0 to `bound` - 1."""
        return (self._words(count) % np.uint64(bound)).astype(np.int64)

    def key(self) -> bytes:
        """Return 32 random bytes, for a stream of another kind."""
        return self._stream.update(bytes(32))

    def _words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(WORD * count)), "<u8")


def _mac(key: bytes, *purpose: str | int) -> bytes:
    return hmac.digest(key, b"zamenis draws\0" + json.dumps(purpose).encode(), "sha256")
