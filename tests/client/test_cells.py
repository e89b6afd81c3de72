"""What a cell holds, in words that do not tell it; and which cells are the same, or look alike."""

from __future__ import annotations

import pytest

from client.cells import alike, as_path, class_of, kind_of, number, without_zeros


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("3,5", "a number with a comma"),
        ("1.234,5", "a number with a comma"),
        ("1,234.5", "a number with a comma"),
        ("1 234,5", "a number with a comma"),
        ("2020-03-12", "a date"),
        ("2020-03-12 10:11", "a date"),
        ("12.03.2020", "a date"),
        ("3/12/20", "a date"),
        ("12-Mar-20", "a date"),
        ("2020年3月12日", "a date"),
        ("10:11", "a time of day"),
        ("45 %", "a percentage"),
        ("<0.5", "a bound instead of a number"),
        ("≥ 90", "a bound instead of a number"),
        ("#DIV/0!", "a spreadsheet's error"),
        ("inf", "an infinite number"),
        ("5 mg", "a number with a unit or a remark"),
        ("sixty", "text"),
        ("1.2.3.4", "text"),
    ],
)
def test_the_kind_of_a_value_is_told_without_it(cell: str, words: str) -> None:
    """Each is no number; what is told holds no digit of it."""
    assert number(cell) is None
    assert kind_of(cell).words == words


def test_an_umlaut_is_the_same_in_one_piece_and_in_two() -> None:
    """Unicode writes it either way, and so do file systems and keyboards."""
    classes = ("unauff\u00e4llig", "1")
    assert class_of("unauffa\u0308llig", classes) == 0
    assert as_path("pru\u0308fung\\a.dcm") == as_path("./pr\u00fcfung/a.dcm")


def test_what_looks_alike() -> None:
    """Case, blanks and full width; of identifiers leading zeros too, but not zeros within."""
    assert alike(" Pleural  Effusion") == alike("pleuraleffusion")
    assert alike("\uff21B") == alike("ab")
    assert alike("a") != alike("b")
    assert len({without_zeros(text) for text in ("P007", "p 7", "P07", "p7")}) == 1
    assert len({without_zeros(text) for text in ("0", "7", "70", "700", "7-0-1")}) == 5
