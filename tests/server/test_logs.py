"""What a run says aloud: each warning once, without a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import wire
from server.logs import Aloud, log_to, warnings_in


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Return a logger of this test's own."""
    found = logging.getLogger("zamenis.test-logs")
    yield found
    found.handlers.clear()


def test_a_warning_is_told_once_in_whatever_round_it_comes(logger: logging.Logger) -> None:
    """Another hospital or another reason is told again; what is no warning is not."""
    told: list[str] = []
    logger.addHandler(Aloud(told.append))
    logger.setLevel(logging.INFO)
    for server_round in (1, 2, 3):
        logger.warning("round %d: %s is left out: silent.", server_round, "st-anna")
        logger.info("round %d", server_round)
    logger.warning("round %d: %s is left out: silent.", 3, "st-olaf")
    try:
        raise ValueError("row 7 of table.csv")
    except ValueError:
        logger.exception("the round failed")
    assert told == [
        "round 1: st-anna is left out: silent.",
        "round 3: st-olaf is left out: silent.",
        "the round failed",
    ]


def test_a_hospitals_words_are_one_line_of_the_log(tmp_path: Path) -> None:
    """Words with a line of their own in them cannot pass for another entry, however they come there.

    What is no warning stands there, too, and is not said aloud.
    """
    forged = "no.\n2026-01-01 00:00:00,000 zamenis.server INFO round 2: 9 sites\r\x1b[2J\u2028x"
    assert "\n" not in wire.printable(forged)
    assert "\x1b" not in wire.printable(forged)
    zamenis = logging.getLogger("zamenis")
    before = zamenis.handlers, zamenis.propagate, zamenis.level
    told: list[str] = []
    try:
        log_to(tmp_path / "run.log")
        zamenis.addHandler(Aloud(told.append))
        zamenis.warning("st-anna is left out: %s", forged)
        zamenis.warning("st-olaf is left out: %s", wire.printable(forged))
        zamenis.info("slot 0")
    finally:
        for handler in zamenis.handlers:
            handler.close()
        zamenis.handlers, zamenis.propagate, zamenis.level = before
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [" is left out: no. 2026-01-01" in line for line in lines] == [True, True, False]
    assert lines[-1].endswith("zamenis INFO slot 0")
    assert len(told) == len(warnings_in(tmp_path / "run.log")) == 2
