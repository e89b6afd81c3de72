"""The real deployment on this machine: a coordinator and hospitals, each its own folder, keys and processes.

Everything is done by the commands that a coordinator and a hospital type. What is left afterwards is what
any run leaves, and the logs; the keys, tokens and databases of the rehearsal are removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.home import Home
from client.policy import starting
from common import service
from common.config import Config
from common.errors import ConfigError, ZamenisError
from common.files import write_text
from common.identity import HEXADECIMALS
from server.experiment.conduct import Progress
from server.experiment.plan import Plan
from server.runs import deployable
from simulation.run import hospital_folders

KEPT = ("results.json", "report.html", "phi.safetensors", "tensorboard", "run.log", "sites.json")
"""What a rehearsal keeps of its run's folder."""


class RehearsalError(ZamenisError):
    """A command of the rehearsal failed."""


@dataclass(frozen=True)
class Rehearsal:
    """A federation that is running on this machine."""

    stage: Path
    """`coordinator/` and `nodes/`, and what else is thrown away."""
    hospitals: Sequence[Path]
    port: int

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.stage / "coordinator"

    def node(self, hospital: str) -> Path:
        """Return the folder of a hospital's node."""
        return self.stage / "nodes" / hospital

    def set_up(self, config: Config, progress: Progress) -> None:
        """Found the federation, start it, and let every hospital join, register and start."""
        step = progress.phase("Starting the federation", 2 + len(self.hospitals))
        found = ("--name", "rehearsal", "--host", "localhost", "--port", str(self.port))
        command("zamenis-coordinator", "found", str(self.coordinator), *found)
        step()
        self.coordinate("start")
        step()
        for folder in self.hospitals:
            self.join(folder, config)
            step()
        self.confirm()

    def confirm(self) -> None:
        """Let every hospital read out its own fingerprint to all others, as in a conference of operators."""
        heard = {}
        for folder in self.hospitals:
            told = self.tell(folder.name, "status").split("fingerprint", 1)[1]
            heard[folder.name] = "".join(told.split())[:HEXADECIMALS]
        for folder in self.hospitals:
            others = (f"{name}={read_out}" for name, read_out in heard.items() if name != folder.name)
            self.tell(folder.name, "confirm", *others)

    def join(self, folder: Path, config: Config) -> None:
        """Let the hospital of `folder` join and start."""
        token = self.coordinate("admit", folder.name).strip()
        node = self.node(folder.name)
        node.parent.mkdir(parents=True, exist_ok=True)
        command("zamenis-hospital", "join", token, str(node))
        home = Home.load(node)
        home.with_settings(home.settings.model_copy(update={"threads": 1, "device": config.engine.device}))
        write_text(home.policy, _allowing(home.policy.read_text(encoding="utf-8"), config))
        task = config.task
        label = ("--label", task.label, "--task", task.kind, "--classes", ",".join(task.classes))
        read = ("--image-size", str(config.data.image_size))
        split = ("--adaptation-share", str(config.data.adaptation_share))
        self.tell(folder.name, "register", str(folder), *label, *read, *split)
        self.start(folder.name)

    def start(self, hospital: str) -> str:
        """Start a hospital's node; a rehearsal that runs as root, as in a container, says that it may."""
        return self.tell(hospital, "start", *(["--as-root"] if os.geteuid() == 0 else []))

    def coordinate(self, *arguments: str) -> str:
        """Run a command of the coordinator's and return what it printed."""
        return command("zamenis-coordinator", *arguments, "--dir", str(self.coordinator))

    def tell(self, hospital: str, *arguments: str) -> str:
        """Run a command of a hospital's and return what it printed."""
        return command("zamenis-hospital", *arguments, "--dir", str(self.node(hospital)))

    def tear_down(self) -> None:
        """Stop every process, also of hospitals that joined later."""
        for node in sorted((self.stage / "nodes").glob("*")):
            service.stop(node, "node", patience=10.0)
        service.stop(self.coordinator, "superlink", patience=10.0)

    def keep_logs(self, out: Path) -> None:
        """Copy the logs of both sides to `out`."""
        for folder in (self.coordinator, *(self.node(one.name) for one in self.hospitals)):
            if (folder / "logs").is_dir():
                shutil.copytree(folder / "logs", out / folder.name, dirs_exist_ok=True)


@contextmanager
def federation(
    hospitals: Sequence[Path], config: Config, stage: Path, progress: Progress
) -> Iterator[Rehearsal]:
    """Yield a running federation of these hospitals in the new folder `stage`; then stop and remove it."""
    if stage.exists():
        raise ConfigError(f"{stage}: exists already; name another folder.")
    stage.mkdir(parents=True, mode=0o700)
    rehearsal = Rehearsal(stage, hospitals, free_port())
    with ExitStack() as undo:
        undo.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        undo.callback(shutil.rmtree, stage, ignore_errors=True)
        undo.callback(rehearsal.keep_logs, stage.parent / "logs")
        undo.callback(rehearsal.tear_down)
        undo.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C
        rehearsal.set_up(config, progress)
        yield rehearsal


def rehearse(config: Config, out: Path, progress: Progress) -> Path:
    """Run `config` on a federation of processes of this machine; return the folder with the results."""
    config = deployable(config)
    out.mkdir(parents=True, exist_ok=True)
    hospitals = hospital_folders(config, out, progress)
    write_text(out / "config.toml", config.to_toml())
    plan = Plan(config, [folder.name for folder in hospitals])
    plan.check_groups()
    if config.secure_aggregation.where != "nowhere":
        plan.check_sums(starting().min_cohort)
    with federation(hospitals, config, out / "stage", progress) as rehearsal:
        step = progress.phase("Running it", 1)
        rehearsal.coordinate("run", str(out / "config.toml"))
        step()
        run = rehearsal.coordinator / "runs" / "run-001"
        for name in KEPT:
            copy = shutil.copytree if (run / name).is_dir() else shutil.copy2
            copy(run / name, out / name)
    return out


def _allowing(policy: str, config: Config) -> str:
    """Return a hospital's policy with what this run needs allowed: it is the rehearsal's own hospital."""
    if config.experiment.shots:
        policy = policy.replace('"describe", "train"]', '"describe", "train", "evaluate"]')
        policy = policy.replace("hold-out = false", "hold-out = true")
    return (
        policy if config.secure_aggregation.where != "nowhere" else policy.replace('"required"', '"optional"')
    )


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(program: str, *arguments: str) -> str:
    """Run one of our commands and return what it printed. RehearsalError, with its words, where it fails."""
    path = shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        raise ConfigError(
            f"{program} is not installed beside {Path(sys.executable).name}; pip install zamenis."
        )
    process = subprocess.Popen(  # noqa: S603 - our own commands
        [path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        told, complaints = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if process.returncode:
        raise RehearsalError(f"{program} {arguments[0]}: {complaints.strip() or told.strip()}")
    return told
