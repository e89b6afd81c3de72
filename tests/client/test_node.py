"""A node that may not work tells why, in words for whoever looks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

from client.cli import app
from client.confine import Walls
from client.enrol import join
from client.fleet import LineError
from client.home import Home
from client.node import WAITING, Node, State, config_of, state_of
from client.reach import reach_of
from client.worker import Worker
from common import service, wire
from common.files import write_text
from tests.deploy.stage import until
from tests.enrolling import Coordinator, coordinator, listening


@contextmanager
def online(there: Coordinator, clock: Callable[[], float]) -> Iterator[int]:
    """Serve enrolment, and refuse every signature of a node; yield the port."""
    federation = there.federation
    with listening(there.enrolment(clock=clock), federation.certificate, federation.key) as server:
        yield server.server_port


def joined(there: Coordinator, folder: Path, port: int, name: str = "st-anna") -> Home:
    """Return a hospital that joined at that port."""
    return join(replace(there.invite(name), port=port).encode(), folder)


@contextmanager
def running(home: Home) -> Iterator[None]:
    """Run the node of `home` as `zamenis-hospital start` does, in a thread."""
    node = Node(home)
    thread = threading.Thread(target=node.run)
    with service.hold(home.directory, "node"):
        thread.start()
        try:
            yield
        finally:
            node.stopping.set()
            thread.join()


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (-600.0, "600 seconds ahead of the coordinator's"),
        (0.0, "it was revoked, or it is unknown there"),
    ],
)
def test_a_clock_that_is_off_is_told_from_being_revoked(tmp_path: Path, off: float, words: str) -> None:
    """The coordinator's answer is the same; its clock makes the difference."""
    there, late = coordinator(tmp_path / "demo"), [0.0]
    with online(there, lambda: time.time() + late[0]) as port:
        home = joined(there, tmp_path / "node", port)
        late[0] = off
        with running(home):
            until(lambda: state_of(home).state == WAITING)
            assert words in state_of(home).why
            shown = CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
    assert f"node           {WAITING}\nbecause        " in shown
    assert words in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert state_of(home) == State("stopped")


def test_a_mistake_in_the_policy_is_told_until_it_is_mended(tmp_path: Path) -> None:
    """The node takes no part meanwhile, and needs no restart."""
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "node", port)
        right = home.policy.read_text()
        with running(home):
            until(lambda: state_of(home).state == WAITING)
            home.policy.write_text(right.replace("max-rounds = 1000", "max-rounds = ten"))
            until(lambda: "nothing is allowed: policy.toml: not valid TOML" in state_of(home).state)
            home.policy.write_text(right)
            until(lambda: state_of(home).state == WAITING)


def test_a_revoked_hospital_is_told_so(tmp_path: Path) -> None:
    """Nobody tells it who else is there."""
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "anna", port)
        there.roster.revoke("st-anna", now=time.time())
        revoked = CliRunner().invoke(app, ["roster", "--dir", str(home.directory)])
    assert "it was revoked, or it is unknown there" in str(revoked.exception)


class BrokenLine:
    """A line that hands out one message and breaks on the first reply."""

    def __init__(self) -> None:
        self.waiting = [Message(RecordDict(), 7, "query.nonsense")]
        self.sent: list[Message] = []
        self.breaks = 1

    def __enter__(self) -> BrokenLine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def receive(self, *, limit: int) -> Message | None:
        """Return the message, once."""
        return self.waiting.pop() if self.waiting else None

    def send(self, reply: Message) -> bool:
        """Take a reply, but for the first time."""
        if self.breaks:
            self.breaks -= 1
            raise LineError("the coordinator is not ready")
        self.sent.append(reply)
        return True


@contextmanager
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Home, BrokenLine]]:
    """Yield a hospital that joined, and the line that its node will have."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    line = BrokenLine()
    monkeypatch.setattr(Node, "_line", lambda node: line)
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        yield joined(there, tmp_path / "home", port), line


def test_a_reply_outlives_the_line_that_breaks_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed is sent over the next line: a message is handed out only once."""
    with broken(tmp_path, monkeypatch) as (home, line), running(home):
        until(lambda: line.sent)
    assert [reply.has_error() for reply in line.sent] == [True]


def test_a_node_hears_who_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as it is connected, before any message says so."""
    there = coordinator(tmp_path / "demo")
    monkeypatch.setattr(Node, "_line", lambda node: BrokenLine())
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "anna", port)
        joined(there, tmp_path / "olaf", port, "st-olaf")
        with running(home):
            until(lambda: "st-olaf" in home.peers().pinned)


def test_an_unsent_reply_stays_where_the_policy_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was computed under another one; the coordinator hears that it is not allowed."""
    monkeypatch.setattr(Node, "_answer", lambda node, message: Message(RecordDict(), reply_to=message))
    with broken(tmp_path, monkeypatch) as (home, line), running(home):
        until(lambda: not line.breaks)
        home.policy.write_text(home.policy.read_text().replace("max-rounds = 1000", "max-rounds = 10"))
        until(lambda: line.sent)
    assert [reply.error.code for reply in line.sent] == [wire.FORBIDDEN]


def test_a_node_is_not_run_as_root_unless_told(tmp_path: Path) -> None:
    """Neither by its command, nor by a systemd unit, which runs as the folder's owner."""
    if os.geteuid() != 0:
        pytest.skip("takes root")
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "node", port)
    command = [str(Path(sys.executable).parent / "zamenis-hospital"), "start", "--dir", str(home.directory)]
    for more in ([], ["--foreground"], ["--systemd"]):
        refused = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "a node is not run as root" in refused.stderr
    assert service.status(home.directory, "node") is None
    os.chown(home.directory, 65534, -1)
    unit = subprocess.run([*command, "--systemd"], capture_output=True, text=True, check=True).stdout
    assert f"User={home.directory.owner()}\n" in unit
    assert "--as-root" not in unit
    subprocess.run([*command, "--as-root"], capture_output=True, check=True)
    assert service.stop(home.directory, "node")


def test_start_names_who_joined_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to join knows nobody until it asks; without an answer, whom it heard of last."""
    monkeypatch.setattr("client.cli._start", lambda home, argv: None)
    there = coordinator(tmp_path / "demo")

    def started() -> str:
        ended = CliRunner().invoke(app, ["start", "--as-root", "--dir", str(home.directory)])
        assert ended.exit_code == 0, ended.output
        return ended.output

    with online(there, time.time) as port:
        home = joined(there, tmp_path / "anna", port)
        assert "Not confirmed yet" not in started()
        joined(there, tmp_path / "bern", port, "st-bern")
        joined(there, tmp_path / "clara", port, "st-clara")
        assert "Not confirmed yet: st-bern, st-clara. zamenis-hospital confirm" in started()
    assert "Not confirmed yet: st-bern, st-clara. zamenis-hospital confirm" in started()


def test_a_worker_that_its_machine_does_not_confine_is_told_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` names what it is not kept from; one that is confined is no news."""
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "node", port)
        with running(home):
            log = home.logs / "worker.log"
            until(lambda: log.is_file() and "worker started" in log.read_text())
            until(lambda: state_of(home).state == WAITING)
            told = CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
            assert ("NOT kept from" in log.read_text()) == ("NOT CONFINED" in told)
            walls = Walls(namespace=False, calls=False, files=False)
            monkeypatch.setattr(Worker, "walls", property(lambda worker: walls))
            until(lambda: state_of(home).open)
            told = CliRunner().invoke(app, ["status", "--dir", str(home.directory)]).output
    assert "NOT CONFINED   the worker is not kept from networks, other programs' sockets" in told


def test_an_envelope_tells_run_and_round(tmp_path: Path) -> None:
    """What is of no round belongs to the last one; what no coordinator writes says nothing."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = wire.instruct(5, wire.TRAIN, wire.Instruction(config="", server_round=7))
    wire.name_run(message, "run-003")
    assert wire.place_of(message.metadata.group_id) == ("run-003", 7)
    unmask = wire.ask_secured(5, wire.UNMASK, wire.Secured("run"), seconds=60.0)
    wire.name_run(unmask, "run-003")
    assert wire.place_of(unmask.metadata.group_id) == ("run-003", 0)
    for strange in ("", "7 run\n003", "7 " + "a" * 65, "-7 run", "\x1b[2J"):
        assert wire.place_of(strange) == ("", 0)
    assert wire.place_of("7") == ("", 7)


def test_a_policy_in_a_new_file_finds_a_new_worker(tmp_path: Path) -> None:
    """An editor replaces the file; the old worker may read the old one only."""
    there = coordinator(tmp_path / "demo")
    with online(there, time.time) as port:
        home = joined(there, tmp_path / "node", port)
    config = config_of(home)
    worker = Worker(config, reach_of(home, config, home.logs / "worker.log"), seconds=60.0)
    worker.start()
    first = worker.pid
    worker.start()
    assert worker.pid == first
    write_text(home.policy, home.policy.read_text())
    worker.start()
    assert worker.pid != first
    worker.stop()
