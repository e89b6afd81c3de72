"""A federation of real processes for tests: what they do to it, and what they look at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors import safe_open
from safetensors.torch import load_file

from client.fleet import Fleet
from client.home import Home
from client.site import NodeConfig
from common import service
from common.config import Config, load
from common.errors import LinkError
from server.control import Control
from server.federation import Federation
from server.roster import Roster
from simulation.rehearse import Rehearsal

ROUNDS = 4
HERE = Path(sys.executable).parent


def small(*over: str) -> Config:
    """Return a configuration whose rounds take a fraction of a second at each hospital."""
    return load(
        None,
        [
            'task.classes=["normal","nodule"]',
            'model.name="mlp"',
            "model.width=8",
            f"training.rounds={ROUNDS}",
            "training.inner-steps=300",
            "training.min-cohort=2",
            "training.round-timeout=60",
            'experiment.algorithms=["reptile"]',
            "experiment.shots=[]",
            'secure-aggregation.where="nowhere"',
            *over,
        ],
    )


def until(happens: Callable[[], Any], *, within: float = 60.0) -> Any:
    """Return what `happens` returns once that is true."""
    deadline = time.monotonic() + within
    while not (found := happens()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found


class Attempt:
    """One `zamenis-coordinator run` or `resume` in a process of its own."""

    def __init__(self, stage: Rehearsal, *arguments: str) -> None:
        self._runs = stage.coordinator / "runs"
        before = {path.name for path in self._runs.glob("*")}
        self.process = subprocess.Popen(
            [str(HERE / "zamenis-coordinator"), *arguments, "--dir", str(stage.coordinator)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        resumed = arguments[0] == "resume"
        self.name = arguments[1] if resumed else until(lambda: self._newest(before))

    def _newest(self, before: set[str]) -> str:
        new = {path.parent.name for path in self._runs.glob("*/config.toml")} - before
        return new.pop() if new else ""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._runs / self.name

    def rounds(self) -> list[dict[str, Any]]:
        """Return what the checkpoint says of each finished round."""
        path = next(self.folder.glob("training/*/*/checkpoint.safetensors"), None)
        if path is None:
            return []
        with safe_open(path, framework="pt") as file:
            told: list[dict[str, Any]] = json.loads(file.metadata()["history"])
        return told

    def after(self, rounds: int) -> None:
        """Wait until so many rounds are finished."""
        try:
            until(lambda: len(self.rounds()) >= rounds or self.process.poll() is not None, within=120.0)
        except AssertionError:
            self.process.kill()
            raise AssertionError(f"{self.log}\n{self.process.communicate()[0]}") from None
        assert self.process.poll() is None, self.process.communicate()[0]

    def end(self, *, code: int = 0, within: float = 90.0) -> str:
        """Return what the command printed once it has ended, with this exit code."""
        told, _ = self.process.communicate(timeout=within)
        assert self.process.returncode == code, told
        return told

    def kill(self) -> None:
        """Kill -9 the coordinator's process, and wait for it."""
        self.process.kill()
        self.process.communicate()

    @property
    def log(self) -> str:
        """The run's log."""
        return (self.folder / "run.log").read_text(encoding="utf-8")


def phi(folder: Path) -> torch.Tensor:
    """Return a run's published weights as one vector."""
    return torch.cat([tensor.flatten() for tensor in load_file(folder / "phi.safetensors").values()])


def allow_plain(stage: Rehearsal, hospital: str) -> None:
    """Let a hospital's policy allow updates that the coordinator sees one by one."""
    policy = stage.node(hospital) / "policy.toml"
    policy.write_text(policy.read_text().replace('"required"', '"optional"'))


def node_process(stage: Rehearsal, hospital: str) -> int:
    """Return the process number of a hospital's node."""
    pid = service.status(stage.node(hospital), "node")
    assert pid is not None
    return pid


def worker_process(stage: Rehearsal, hospital: str) -> int:
    """Return the process number of a hospital's standing worker."""
    told = json.loads((stage.node(hospital) / "state" / "node.json").read_text())
    return int(told["worker"])


def online(stage: Rehearsal) -> set[str]:
    """Return the hospitals that are connected now."""
    federation = Federation.load(stage.coordinator)
    try:
        with Control(federation) as control:
            nodes = control.online()
    except LinkError:
        return set()
    return {entry.hospital for entry in Roster(federation.roster).entries() if entry.node_id in nodes}


def connected(stage: Rehearsal, *hospitals: str) -> None:
    """Wait until these hospitals, and perhaps others, are connected."""
    until(lambda: set(hospitals) <= online(stage))


def restart_service(stage: Rehearsal) -> None:
    """Kill -9 the coordinator's service (SuperLink), and start it again."""
    pid = service.status(stage.coordinator, "superlink")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.status(stage.coordinator, "superlink") is None)
    stage.coordinate("start")


@contextmanager
def insisting(stage: Rehearsal, hospital: str) -> Iterator[None]:
    """Let a hospital's policy require secure aggregation for as long as the context lasts."""
    policy = stage.node(hospital) / "policy.toml"
    before = policy.read_text()
    policy.write_text(before.replace('"optional"', '"required"'))
    try:
        yield
    finally:
        policy.write_text(before)


def freeze(pid: int) -> None:
    """Stop a process so that it answers nothing and is not gone."""
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let a frozen process go on."""
    os.kill(pid, signal.SIGCONT)


class Impostor:
    """A hospital's node that answers what a test tells it to, with that hospital's true keys.

    `pause` is the seconds between two looks for a message: what looks cost the SuperLink counts with many.
    """

    def __init__(
        self, home: Home, answer: Callable[[Message, NodeConfig], Message], *, pause: float = 0.02
    ) -> None:
        self._home = home
        self._answer = answer
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        from client.node import config_of

        where = self._home.settings
        address = f"{where.host}:{where.port}"
        with Fleet(address, self._home.ca.read_bytes(), self._home.keys().node, where.node_id) as line:
            while not self._ended.is_set():
                message = line.receive()
                if message is None:
                    self._ended.wait(self._pause)
                    continue
                line.send(self._answer(message, config_of(self._home)))


class SmallDisk:
    """A disk with hardly any room."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self) -> None:
        """Leave no room at all."""
        with suppress(OSError), (self._folder / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def make_room(self) -> None:
        """Give it 64 MiB."""
        mount("-o", "remount,size=64m", str(self._folder))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Put `folder`, as it is, on a disk of its own that is all but full, and take it back at the end."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    backup = folder.with_name(f"{folder.name}.backup")
    shutil.copytree(folder, backup)
    used = sum(path.stat().st_size + 4096 for path in folder.rglob("*"))
    mount("-t", "tmpfs", "-o", f"size={used // 1024 + 8}k", "tmpfs", str(folder))
    try:
        shutil.copytree(backup, folder, dirs_exist_ok=True)
        yield SmallDisk(folder)
        (folder / "ballast").unlink(missing_ok=True)
        shutil.copytree(folder, backup, dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.copytree(backup, folder, dirs_exist_ok=True)


def mount(*arguments: str) -> None:
    """Mount, or skip where this machine does not let even root."""
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounts")
