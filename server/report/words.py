"""Words that a report says in several places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listing(items: Iterable[Any]) -> str:
    """Return `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def class_name(label: str, name: str) -> str:
    """Return what a class is called where it stands alone: a bare number goes with its label."""
    return name if any(character.isalpha() for character in name) else f"{label} {name}"
