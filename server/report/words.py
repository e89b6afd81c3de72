"""Words that a report says in several places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

NOBODY = "nobody"
"""Whom a training over every hospital holds out."""


def listing(items: Iterable[Any]) -> str:
    """Return `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def class_name(label: str, name: str) -> str:
    """Return what a class is called where it stands alone: a bare number goes with its label."""
    return name if any(character.isalpha() for character in name) else f"{label} {name}"


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `2, 5 to 7`."""
    told = []
    for _, each in groupby(enumerate(numbers), key=lambda one: one[1] - one[0]):
        span = [number for _, number in each]
        told.append(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}")
    return ", ".join(told)
