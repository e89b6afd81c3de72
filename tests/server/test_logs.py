"""What a run says aloud: each warning once, without a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from server.logs import Aloud


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
