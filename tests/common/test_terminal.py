"""What commands print can be copied."""

from __future__ import annotations

import pytest

from common import terminal


def test_a_table_breaks_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However long a cell is; columns stand one below the other; brackets are no markup."""
    long = "4f39 " * 60 + "[bold]"
    terminal.table(("hospital", "fingerprint"), [("st-anna", long), ("a", "-")])
    assert capsys.readouterr().out.splitlines() == [
        "hospital  fingerprint",
        f"st-anna   {long}",
        "a         -",
    ]
