"""What a cell of a table says: a number, a class, a path; what else it looks like; which cells look alike."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

NOT_MEASURED = frozenset({"", "?", "nan"})

PLACEHOLDERS = frozenset({
    "anonymous", "anonym", "anonymized", "anonymised", "anonymisiert", "anon", "deidentified", "unknown",
    "unbekannt", "none", "null", "na", "n/a", "nopatient", "noid", "test", "patient", "removed", "redacted",
    "dummy", "default", "x", "xx", "xxx", "xxxx", "0", "-", "?", ".", "匿名", "未知",
})  # fmt: skip
"""What devices and exports write for a patient whom they do not name, as `without_zeros` makes it."""

_SHAPES = (
    (r"[+-]?\d[\d.' ]*,[\d,.' ]*\d", "a number with a comma", "Write decimals with a point"),
    (r"\d{4}([-/.])\d{1,2}\1\d{1,2}([ T].*)?", "a date", ""),
    (r"\d{1,2}([-/.])\d{1,2}\1(\d{4}|\d{2})( .*)?", "a date", ""),
    (r"\d{1,2}[-. ]*[a-zäûé]{3,9}[-. ]*\d{2,4}", "a date", ""),
    (r"\d{4}年\d{1,2}月\d{1,2}日", "a date", ""),
    (r"\d{1,2}:\d{2}(:\d{2})?", "a time of day", ""),
    (r"[+-]?\d[\d.]*\s*%", "a percentage", "Write a plain number"),
    (r"[<>≤≥=~]+\s*\d.*", "a bound instead of a number", ""),
    (r"#[a-z0-9/!?]+", "a spreadsheet's error", ""),
    (r"[+-]?(inf|infinity)", "an infinite number", ""),
    (r"[+-]?\d+(\.\d+)?\s*[^\d\s.].*", "a number with a unit or a remark", "Write the number alone"),
)
"""What cells that are no numbers look like, with a remedy of its own."""


@dataclass(frozen=True)
class Kind:
    """What a cell that should be a number holds, in words that do not tell its value."""

    words: str
    remedy: str


def number(text: str) -> float | None:
    """Return a cell as a finite number, or None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def kind_of(text: str) -> Kind:
    """Return what a cell that is no finite number looks like."""
    for pattern, words, remedy in _SHAPES:
        if re.fullmatch(pattern, text.strip().lower()):
            return Kind(words, remedy or "Write a number")
    return Kind("text", "Write a number")


def comparable(text: str) -> float | str:
    """Return a number where the text is one, so that 1, 1.0 and "1.0" are the same category; else the text.

    An umlaut is the same in one piece and in two (Unicode's NFC).
    """
    value = number(text)
    return unicodedata.normalize("NFC", text.strip()) if value is None else value


def class_of(label: str, classes: tuple[str, ...]) -> int | None:
    """Return which class a label names, numbers compared as numbers ("1.0" is "1"); None where none."""
    return _places(classes).get(comparable(label))


@lru_cache(maxsize=32)
def _places(classes: tuple[str, ...]) -> dict[float | str, int]:
    return {comparable(name): index for index, name in enumerate(classes)}


def alike(text: str) -> str:
    """Return what texts share that differ in case, blanks or width alone."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_zeros(text: str) -> str:
    """Return what identifiers share that are alike but for leading zeros of their numbers."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", alike(text))


def as_path(text: str) -> str:
    """Return a path from a hospital's folder as it is compared: with /, umlauts in one piece."""
    return unicodedata.normalize("NFC", text).replace("\\", "/").removeprefix("./")
