"""Real processes are killed, frozen and cut off in the middle of a run, as docs/reliability.md tells."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from common import service
from simulation.rehearse import Rehearsal, RehearsalError
from tests.deploy.stage import (
    ROUNDS,
    Attempt,
    connected,
    freeze,
    insisting,
    node_process,
    online,
    phi,
    restart_service,
    small_disk,
    thaw,
    until,
    worker_process,
)

EVERYONE = ("site-1", "site-2", "site-3")


def state(stage: Rehearsal, run: Attempt) -> str:
    """Return how a run is, as `runs` tells it."""
    (line,) = (line for line in stage.coordinate("runs").splitlines() if line.startswith(f"{run.name} "))
    return re.split(r"  +", line)[1]


@pytest.fixture(autouse=True)
def whole(stage: Rehearsal) -> None:
    """Begin with everyone connected."""
    connected(stage, *EVERYONE)


def test_over_a_network_a_run_ends_in_the_bits_of_the_simulation(
    stage: Rehearsal, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """Commands, TLS, processes: the same weights, and the same files as the simulator's."""
    run = Attempt(stage, "run", str(run_file))
    told = run.end()
    assert torch.equal(phi(run.folder), undisturbed)
    assert {"report.html", "results.json", "config.toml"} <= {path.name for path in run.folder.iterdir()}
    assert "Meta-trained over 3 hospitals" in told
    assert run.name in stage.coordinate("runs")


def test_a_worker_that_is_killed_costs_its_message(stage: Rehearsal, run_file: Path) -> None:
    """The hospital misses one round, with a reason in both logs, and answers the next."""
    run = Attempt(stage, "run", str(run_file))
    run.after(1)
    os.kill(worker_process(stage, "site-2"), signal.SIGKILL)
    run.end()
    counts = [one["sites"] for one in run.rounds()]
    assert len(counts) == ROUNDS
    assert counts[-1] == 3
    assert counts.count(2) <= 1
    if 2 in counts:
        assert "site-2 is left out: the process that computed there was lost" in run.log
        assert "the worker died" in (stage.node("site-2") / "logs" / "node.log").read_text()


def test_a_node_that_is_killed_is_missed_and_comes_back(stage: Rehearsal, run_file: Path) -> None:
    """The others go on; once started again it takes part again, without waiting to be forgotten."""
    over = ("--set", "training.rounds=12", "--set", "training.round-timeout=6")
    run = Attempt(stage, "run", str(run_file), *over)
    run.after(1)
    os.kill(node_process(stage, "site-3"), signal.SIGKILL)
    until(lambda: service.status(stage.node("site-3"), "node") is None)
    until(lambda: any(one["sites"] == 2 for one in run.rounds()))
    stage.start("site-3")
    run.end()
    counts = [one["sites"] for one in run.rounds()]
    assert counts[-1] == 3
    assert "site-3 is left out" in run.log


def test_a_coordinator_that_is_killed_resumes_with_the_right_weights(
    stage: Rehearsal, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """Killed twice, wherever it is: training, adding up, writing its checkpoint."""
    run = Attempt(stage, "run", str(run_file))
    for rounds in (1, 2):
        run.after(rounds)
        run.kill()
        run = Attempt(stage, "resume", run.name)
    run.end()
    counts = [(one["round"], one["sites"]) for one in run.rounds()]
    assert counts == [(number, 3) for number in range(1, ROUNDS + 1)], run.log
    assert torch.equal(phi(run.folder), undisturbed)


def test_a_superlink_that_is_killed_is_waited_for(
    stage: Rehearsal, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """The run goes on by itself once the service is started again; hospitals find it again too."""
    run = Attempt(stage, "run", str(run_file))
    run.after(2)
    restart_service(stage)
    told = run.end(within=120)
    assert "nothing finished is lost" in told
    assert [one["sites"] for one in run.rounds()] == [3] * ROUNDS
    assert torch.equal(phi(run.folder), undisturbed)


def test_a_silent_hospital_is_left_out_and_welcome_again(stage: Rehearsal, run_file: Path) -> None:
    """Frozen, it misses its deadline; what it answers afterwards is not taken; then it takes part again."""
    run = Attempt(
        stage, "run", str(run_file), "--set", "training.rounds=16", "--set", "training.round-timeout=4"
    )
    run.after(1)
    pids = [worker_process(stage, "site-1"), node_process(stage, "site-1")]
    for pid in pids:
        freeze(pid)
    try:
        until(lambda: any(one["sites"] == 2 for one in run.rounds()))
    finally:
        for pid in pids:
            thaw(pid)
    run.end()
    counts = [one["sites"] for one in run.rounds()]
    assert counts[-1] == 3
    assert "site-1 is left out: did not answer in time" in run.log


def test_too_few_hospitals_end_a_run_that_would_learn_nothing(stage: Rehearsal, run_file: Path) -> None:
    """Two are there where a round needs three: the run ends at once, says why, and publishes nothing."""
    stage.tell("site-1", "pause")
    try:
        until(lambda: "site-1" not in online(stage))
        run = Attempt(stage, "run", str(run_file), "--set", "training.min-cohort=3")
        told = run.end(code=2)
    finally:
        stage.tell("site-1", "unpause")
    assert "site-1: its node is not connected." in told
    assert "2 hospitals take part, and training.min-cohort asks for 3. Not there: site-1." in told
    assert run.rounds() == []
    assert state(stage, run) == "refused"


def test_a_run_that_learned_nothing_is_no_result(stage: Rehearsal, run_file: Path, tmp_path: Path) -> None:
    """One refuses where all are needed: an exit code and a state of its own, and nothing to export."""
    with insisting(stage, "site-1"):
        run = Attempt(stage, "run", str(run_file), "--set", "training.min-cohort=3")
        told = run.end(code=3)
    assert "site-1: this hospital's policy does not allow it (secure-aggregation in its policy.toml)." in told
    assert state(stage, run) == "learned nothing"
    assert "learned nothing" in stage.coordinate("show", run.name)
    phi_file = tmp_path / "phi.safetensors"
    with pytest.raises(RehearsalError, match="learned nothing"):
        stage.coordinate("export", run.name, str(phi_file))
    assert not phi_file.exists()
    Attempt(stage, "resume", run.name).end()
    assert state(stage, run) == "finished"
    stage.coordinate("export", run.name, str(phi_file))
    assert phi_file.exists()


def test_a_run_asks_whom_it_is_for_and_waits_for_them(stage: Rehearsal, run_file: Path) -> None:
    """`--hospitals` leaves the others in peace; `--wait` begins once who is away has come."""
    two = Attempt(
        stage, "run", str(run_file), "--hospitals", "site-2,site-3", "--set", "training.rounds=1"
    ).end()
    assert "Meta-trained over 2 hospitals" in two
    assert "site-1" not in two
    with pytest.raises(RehearsalError, match=r"--hospitals: site-9: not enrolled"):
        stage.coordinate("run", str(run_file), "--hospitals", "site-9")
    stage.tell("site-1", "pause")
    try:
        until(lambda: "site-1" not in online(stage))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                stage.coordinate, "run", str(run_file), "--wait", "60", "--set", "training.rounds=1"
            )
            time.sleep(2)
            stage.tell("site-1", "unpause")
            told = waiting.result()
    finally:
        stage.tell("site-1", "unpause")
    assert "Waiting for site-1, for 60 s at most." in told
    assert "Meta-trained over 3 hospitals" in told


def test_a_service_that_restarts_costs_no_round_of_a_run_that_needs_everybody(
    stage: Rehearsal, run_file: Path
) -> None:
    """More rounds than a reconnection takes: none passes while hospitals are finding the service again."""
    over = ("--set", "training.rounds=20", "--set", "training.min-cohort=3")
    run = Attempt(stage, "run", str(run_file), *over)
    run.after(1)
    restart_service(stage)
    run.end(within=200)
    assert [one["sites"] for one in run.rounds()] == [3] * 20


def test_a_run_waits_for_a_node_that_restarts(stage: Rehearsal, run_file: Path) -> None:
    """One of three signs off and on again in a run that needs three: no round passes without it."""
    over = ("--set", "training.rounds=20", "--set", "training.min-cohort=3")
    run = Attempt(stage, "run", str(run_file), *over)
    run.after(1)
    stage.tell("site-2", "stop")
    until(lambda: "waits for site-2" in run.log or run.process.poll() is not None)
    told = stage.start("site-2")
    run.end(within=200)
    assert "✓ site-2 is connected" in told
    assert [one["sites"] for one in run.rounds()] == [3] * 20


def test_a_node_that_starts_says_whether_it_is_connected(stage: Rehearsal) -> None:
    """A tick is for a line that stands; otherwise it says that it runs, and why it is not connected."""
    stage.tell("site-2", "stop")
    stage.tell("site-2", "pause")
    try:
        told = stage.start("site-2")
        assert "is not connected: paused." in told
        assert "✓" not in told
    finally:
        stage.tell("site-2", "unpause")
    stage.tell("site-2", "stop")
    stage.coordinate("stop")
    try:
        told = stage.start("site-2")
        assert "is not connected: waiting to try again: the coordinator cannot be reached" in told
        assert "✓" not in told
    finally:
        stage.coordinate("start")


def test_a_run_without_quorum_stops_at_a_missing_hospital_and_goes_on(
    stage: Rehearsal, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """With min-cohort 0 everyone is needed: the run ends with the reason, and resumes to the same bits."""
    over = ("--set", "training.min-cohort=0", "--set", "training.round-timeout=4")
    run = Attempt(stage, "run", str(run_file), *over)
    run.after(1)
    pid = node_process(stage, "site-2")
    freeze(pid)
    try:
        told = run.end(code=2)
    finally:
        thaw(pid)
    assert "site-2: did not answer in time" in told
    again = Attempt(stage, "resume", run.name)
    again.end()
    assert torch.equal(phi(run.folder), undisturbed)


def test_a_full_disk_at_the_coordinator_loses_nothing(
    stage: Rehearsal, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """The run ends with one clear line; with room again it resumes to the same bits."""
    run = Attempt(stage, "run", str(run_file))
    run.after(2)
    run.kill()
    with small_disk(run.folder) as disk:
        disk.fill()
        told = Attempt(stage, "resume", run.name).end(code=2)
        assert "No space left on device" in told
        assert "Traceback" not in told
        disk.make_room()
        Attempt(stage, "resume", run.name).end()
    assert torch.equal(phi(run.folder), undisturbed)


def test_a_full_disk_at_a_hospital_stops_nobody(stage: Rehearsal, run_file: Path) -> None:
    """Its node cannot even write its status: it goes on, or is left out with a code, and is back later."""
    with small_disk(stage.node("site-2") / "state") as disk:
        disk.fill()
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=2")
        run.end()
        assert len(run.rounds()) == 2
        assert all(one["sites"] >= 2 for one in run.rounds())
    connected(stage, *EVERYONE)


SECURE = ("--set", 'secure-aggregation.where="network"')


def test_secure_aggregation_over_the_network_ends_in_the_bits_of_its_simulation(
    stage: Rehearsal, summed: torch.Tensor, undisturbed: torch.Tensor, run_file: Path
) -> None:
    """Masks, shares and signatures change nothing but the rounding, which the seed decides."""
    run = Attempt(stage, "run", str(run_file), *SECURE)
    run.end()
    assert [one["sites"] for one in run.rounds()] == [3] * ROUNDS
    assert torch.equal(phi(run.folder), summed)
    assert not torch.equal(summed, undisturbed)
    assert float((summed - undisturbed).abs().max()) < 0.05 * float(undisturbed.abs().max())


def test_a_hospital_that_is_killed_in_a_secure_run_costs_slots_and_comes_back(
    stage: Rehearsal, run_file: Path
) -> None:
    """Of three nobody may drop: phi stays as it was until the third is back; its keys and log are on disk."""
    over = ("--set", "training.rounds=500", "--set", "training.round-timeout=20")
    run = Attempt(stage, "run", str(run_file), *SECURE, *over)
    run.after(1)
    os.kill(node_process(stage, "site-3"), signal.SIGKILL)
    until(lambda: service.status(stage.node("site-3"), "node") is None)
    lost = len(run.rounds())
    stage.start("site-3")
    until(lambda: len(run.rounds()) > lost + 3 and run.rounds()[-1]["sites"] == 3, within=240)
    assert state(stage, run) == "running"
    run.kill()
    assert state(stage, run) == "interrupted"
    rounds = run.rounds()
    assert {one["sites"] for one in rounds} <= {0, 3}
    assert all("delta-norm" not in one for one in rounds if one["sites"] == 0)


def test_a_coordinator_that_is_killed_in_a_secure_run_resumes_to_the_same_bits(
    stage: Rehearsal, summed: torch.Tensor, run_file: Path
) -> None:
    """Killed twice, somewhere between dealing and unmasking: new keys, new slots, the same weights."""
    run = Attempt(stage, "run", str(run_file), *SECURE)
    for rounds in (1, 2):
        run.after(rounds)
        run.kill()
        run = Attempt(stage, "resume", run.name)
    run.end(within=200)
    assert [one["sites"] for one in run.rounds()] == [3] * ROUNDS, run.log
    assert torch.equal(phi(run.folder), summed)


def test_a_superlink_that_is_killed_in_a_secure_run_changes_nothing(
    stage: Rehearsal, summed: torch.Tensor, run_file: Path
) -> None:
    """The run goes on with new keys and new slots, and ends in the same bits."""
    run = Attempt(stage, "run", str(run_file), *SECURE)
    run.after(2)
    restart_service(stage)
    run.end(within=200)
    assert torch.equal(phi(run.folder), summed)


def test_a_hospital_that_insists_on_secure_aggregation_sends_no_plain_update(
    stage: Rehearsal, run_file: Path
) -> None:
    """The run goes on without it and says which key of its policy refused."""
    with insisting(stage, "site-1"):
        run = Attempt(stage, "run", str(run_file), "--set", "training.rounds=2")
        run.end()
    assert [one["sites"] for one in run.rounds()] == [2, 2]
    assert "site-1 is left out: this hospital's policy does not allow it (secure-aggregation" in run.log
