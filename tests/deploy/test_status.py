"""While a run goes on, both sides are told where it is."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from simulation.rehearse import Rehearsal
from tests.deploy.stage import Attempt, connected, freeze, node_process, thaw

ROUNDS = 8


def test_status_shows_run_and_round_on_both_sides(stage: Rehearsal, run_file: Path) -> None:
    """The run stands still while one hospital is frozen, so that nothing here hangs on timing."""
    connected(stage, "site-1", "site-2", "site-3")
    frozen = node_process(stage, "site-3")
    run = Attempt(stage, "run", str(run_file), "--set", f"training.rounds={ROUNDS}")
    run.after(1)
    freeze(frozen)
    try:
        told, hospital = stage.coordinate("status"), stage.tell("site-1", "status")
    finally:
        thaw(frozen)
    run.end()
    assert re.search(rf"^run +{run.name}, running: round [2-{ROUNDS}] of {ROUNDS}$", told, re.MULTILINE)
    assert "takes part     site-1, site-2, site-3" in told
    for site in ("site-1", "site-2", "site-3"):
        assert re.search(rf"^{site} +connected +{re.escape(version('zamenis'))} +-$", told, re.MULTILINE)
    assert re.search(rf"^run +{run.name}, round [1-{ROUNDS}]; ", hospital, re.MULTILINE)
