"""A log's entries stay entries, whatever words are in them."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from common.logs import LONGEST
from common.secagg.encoding import dump
from common.secagg.messages import Advertisement
from tests.client.desks import Desks

FORGED = "zz\n2026-11-27 04:00:00,000 INFO all is well\x1b[2J"
PROGRAM = """
import logging, sys
from common.logs import log_aloud
log_aloud("%(levelname)s %(message)s")
logging.getLogger("zamenis.node").info(sys.stdin.read())
try:
    raise ValueError("a\\x1b[2J" + 2 * 4000 * "b")
except ValueError:
    logging.getLogger("zamenis.node").exception("failed")
"""


def test_a_coordinators_words_are_one_line_of_a_nodes_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A holder's name is anything that a coordinator likes; a refusal names it, and the log has it."""
    desks = Desks(tmp_path, 3)
    holders = desks.holders()
    stranger = Advertisement(desks.run, FORGED + 2**20 * "x", 1, bytes(32))
    reply = desks.ask(
        "h000",
        "query.deal",
        holders=dump(
            type(holders)(
                holders.run, 1, holders.threshold, holders.degree, (*holders.advertisements, stranger)
            )
        ),
    )
    assert reply.has_error()
    (words,) = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    assert FORGED in words
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=words, capture_output=True, text=True, check=True
    )
    entry, failed, *traceback = done.stderr.splitlines()
    assert entry.startswith("INFO refused a query.deal message: zz 2026-11-27")
    assert len(entry) == LONGEST
    assert failed == "ERROR failed"
    assert sum(map(len, traceback)) <= LONGEST
    assert "\x1b" not in done.stderr
