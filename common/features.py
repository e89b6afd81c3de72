"""A table's features: which columns a network is given, in which order, and how each becomes numbers.

All hospitals of a run must have the same; phi means nothing to whoever has others. docs/data.md tells how
numbers come from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

LONGEST = 128
"""Characters of a column's name or a category."""
MOST = 65536
"""Features of a table at the most."""
Word = Annotated[str, Field(max_length=LONGEST)]
Words = Annotated[tuple[Word, ...], Field(max_length=MOST)]
Bits = Annotated[int, Field(ge=8, le=MOST)]


@dataclass(frozen=True)
class Features:
    """The columns of schema.toml that are features, numeric first, then categorical ones, then bits."""

    numeric: Words
    categorical: Annotated[tuple[tuple[Word, Words], ...], Field(max_length=MOST)] = ()
    """Column and its categories, an indicator each."""
    bits: Annotated[tuple[tuple[Word, Bits], ...], Field(max_length=MOST)] = ()
    """Column of hexadecimal digits and how many bits it holds."""
    missing: Annotated[tuple[tuple[Word, Words], ...], Field(max_length=MOST)] = ()
    """Column and its codes for "not measured"; each hospital may have its own."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Features:
        """Return the features that `asdict` gave. ValueError: it is something else."""
        return _FEATURES.validate_python(told)

    @property
    def width(self) -> int:
        """How many numbers a row becomes."""
        indicators = sum(len(categories) for _, categories in self.categorical)
        return len(self.numeric) + indicators + sum(count for _, count in self.bits)

    def difference(self, other: Features, here: str, there: str) -> str:
        """Return in words the first column in which another table differs; empty: in none.

        `here` and `there` say where the tables are. What counts as missing is a matter of each.
        """
        both = zip_longest(self._told(), other._told(), fillvalue="missing")
        for place, (mine, theirs) in enumerate(both, start=1):
            if mine != theirs:
                return f"column {place} is {mine} at {here}, and {theirs} at {there}"
        return ""

    def with_codes_of(self, tables: Iterable[Features | None], least: int = 1) -> Features:
        """Return the features with the codes for "not measured" that at least so many tables have.

        Where the tables are other hospitals', one of them alone must not decide what counts as missing.
        """
        counts = Counter(
            (column, code)
            for table in tables
            if table
            for column, told in table.missing
            for code in set(told)
        )
        codes: dict[str, list[str]] = {}
        for (column, code), count in sorted(counts.items()):
            if count >= least:
                codes.setdefault(column, []).append(code)
        return replace(self, missing=tuple((column, tuple(told)) for column, told in codes.items()))

    def _told(self) -> Iterator[str]:
        yield from self.numeric
        yield from (f"{name} of {', '.join(categories)}" for name, categories in self.categorical)
        yield from (f"{name} of {count} bits" for name, count in self.bits)


_FEATURES = TypeAdapter(Features)
