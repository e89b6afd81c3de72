"""What `zamenis-coordinator status` shows of runs and hospitals, from the files that runs leave."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from client.home import Keys
from common import service
from common.enrolment import About
from common.files import write_text
from common.logs import OneLine
from server import checkpoint, overview
from server.app import CHECKPOINT
from server.checkpoint import Checkpoint
from server.cli import app
from server.experiment.plan import Training
from server.outer_loop import OuterState
from server.runs import PROCESS, Run, new_run
from tests.enrolling import Coordinator, application, coordinator
from tests.server.rounds import settings

EVERYBODY = ("a", "b", "c")
AWAY, SILENT = "its node is not connected", "did not answer in time"


@pytest.fixture
def there(tmp_path: Path) -> Coordinator:
    """Return a federation of three hospitals."""
    there = coordinator(tmp_path / "demo")
    for name in EVERYBODY:
        there.enrolment().apply(application(there.invite(name), Keys.make()).to_json())
    return there


def begun(there: Coordinator, *over: str) -> Run:
    """Return a run of four rounds that begins with two of the three hospitals."""
    run = new_run(there.federation, settings("experiment.shots=[]", *over))
    write_text(run.folder / "sites.json", json.dumps({"a": {}, "b": {}}))
    return run


def rounds(run: Run, training: Training, *missing: Mapping[str, str]) -> None:
    """Write down a training's rounds by who was missing in each."""
    history: list[Mapping[str, Any]] = [
        {"round": number, "sites": 2 - len(each), **({"missing": each} if each else {})}
        for number, each in enumerate(missing, 1)
    ]
    state = OuterState(torch.zeros(3), len(history), {}, 1.0)
    checkpoint.save(run.folder / training.folder / CHECKPOINT, Checkpoint(state, history), identity="")


def log(run: Run, level: int, words: str) -> None:
    """Write a line into a run's log, as it is written while it runs."""
    handler = logging.FileHandler(run.folder / "run.log", encoding="utf-8")
    handler.setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s %(message)s"))
    handler.handle(logging.LogRecord("zamenis.server", level, "", 0, words, None, None))
    handler.close()


def test_a_run_tells_where_it_is_and_who_was_left_out_when_and_why(there: Coordinator) -> None:
    """Of each hospital and reason the rounds; who is not in the run, and the run's last warning."""
    run = begun(there)
    assert overview.of_run(run, EVERYBODY)["run"] == "run-001, interrupted after 0 of 4 rounds"
    rounds(run, Training("reptile", ()), {"a": AWAY}, {"a": AWAY}, {"b": f"{SILENT}."})
    log(run, logging.WARNING, f"c: {AWAY}.")
    log(run, logging.WARNING, "round 4 waits for b, for 60 s at most")
    log(run, logging.INFO, "nothing of note")
    with service.hold(run.folder, PROCESS):
        told = overview.of_run(run, EVERYBODY)
    assert told["run"] == "run-001, running: round 4 of 4"
    assert told["takes part"] == "a, b"
    assert told["not in it"] == f"c: {AWAY}."
    assert told["left out"].splitlines() == [f"a, rounds 1 to 2: {AWAY}.", f"b, round 3: {SILENT}."]
    assert told["last word"].endswith(" round 4 waits for b, for 60 s at most")
    stopped = overview.of_run(run, EVERYBODY)
    assert stopped["run"] == "run-001, interrupted after 3 of 4 rounds"
    assert stopped["last word"] == ""


def test_of_many_trainings_the_present_one_is_told(there: Coordinator) -> None:
    """Holding two hospitals out in turn: two trainings, and one over both, in this order."""
    run = begun(there, "experiment.shots=[1]", "adaptation.folds=0", "experiment.publish=true")
    rounds(run, Training("reptile", ("a",)), {}, {}, {}, {})
    rounds(run, Training("reptile", ("b",)), {})
    told = overview.of_run(run, EVERYBODY)["run"]
    assert told == "run-001, interrupted after 1 of 4 rounds of training 2 of 3 (reptile without b)"


def test_who_has_yet_to_confirm_whom() -> None:
    """By name where they are few; of who has said nothing, nothing is known."""
    about = {"a": About(version="0.2.0", knows=("b", "gone")), "b": About(version="0.1.9", knows=("a", "c"))}
    assert list(overview.of_hospitals(EVERYBODY, {"a": "connected"}, about)) == [
        ("a", "connected", "0.2.0", "c"),
        ("b", "never", "0.1.9", "-"),
        ("c", "never", "?", "?"),
    ]
    unseen = list(overview.of_hospitals(EVERYBODY, None, about))
    assert [seen for _, seen, _, _ in unseen] == ["?", "?", "?"]
    many = {f"site-{number}" for number in range(34)} | {"a"}
    ((_, _, _, confirms),) = (one for one in overview.of_hospitals(many, {}, about) if one[0] == "a")
    assert confirms == "34 of 34"


def test_many_runs_of_hospitals_with_long_names_are_listed_in_80_columns(there: Coordinator) -> None:
    """No name is cut; each run's line begins with its own."""
    names = [f"hospital-{number}-of-the-holy-spirit" for number in range(12)]
    for _ in range(3):
        write_text(begun(there).folder / "sites.json", json.dumps(names))
    lines = CliRunner().invoke(app, ["runs", "--dir", str(there.federation.directory)]).output.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["run", "run-001", "run-002", "run-003"]
    assert max(map(len, lines)) <= 80
    assert [sum(line.rstrip(",").endswith(name) for line in lines) for name in names] == [3] * 12


def test_status_shows_all_of_it_in_80_columns(there: Coordinator) -> None:
    """With the service down, too; a damaged run hides nothing else."""
    there.roster.take_about("a", About(version="0.1.9", knows=("b",)))
    run = begun(there)
    rounds(run, Training("reptile", ()), {"b": f"it refuses a step of {'secure aggregation; ' * 6}"})

    def shown() -> str:
        ended = CliRunner().invoke(app, ["status", "--dir", str(there.federation.directory)])
        assert ended.exit_code == 0, ended.output
        assert all(len(line) <= 80 or len(line.split()) <= 2 for line in ended.output.splitlines())
        return ended.output

    told = shown()
    assert f"version        {version('zamenis')}" in told
    assert "service        not running; zamenis-coordinator start" in told
    assert "run            run-001, interrupted after 1 of 4 rounds" in told
    assert "a         ?     0.1.9    c" in told
    (run.folder / "sites.json").write_text("{")
    told = shown()
    assert "sites.json: is damaged" in " ".join(told.split())
    assert "a         ?     0.1.9    c" in told
    listed = CliRunner().invoke(app, ["runs", "--dir", str(there.federation.directory)])
    assert "run-001  damaged" in listed.output
