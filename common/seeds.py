"""One seed decides everything: every random stream is named by what it is for, never by when it is drawn."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive(seed, "train", site, server_round)`."""
    name = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose; the same purpose always draws the same."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
