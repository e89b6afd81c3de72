"""Plain Flower on this machine, by its own commands: a SuperLink, a SuperNode per hospital, `flwr run`.

TLS and node authentication are on; what else there is to set has Flower's default. Every process leads a
group of its own, and all groups are ended at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.site import NodeConfig
from common.config import Config
from common.errors import LinkError
from common.files import PRIVATE, write_bytes
from server.control import Control
from server.federation import Federation, found
from simulation.rehearse import free_port

APP = Path(__file__).with_name("stock")
"""The app bundle."""
STARTING, LONGEST_ROUND = 60.0, 60.0
"""Seconds that starting may take, and that every round may."""
CONNECTION = """\
[superlink]
default = "stock"
[superlink.stock]
address = "127.0.0.1:{port}"
root-certificates = "{ca}"
"""


@dataclass(frozen=True)
class Stock:
    """A SuperLink and SuperNodes that are running, with everything they have in `folder`."""

    folder: Path
    environment: Mapping[str, str]

    def play(self, config: Config, rounds: int) -> dict[str, Any]:
        """Return what the bundle's ServerApp wrote: the seconds of every round, and phi's digest at the end.

        SystemExit, with the last lines of the logs, where the run did not come to an end.
        """
        settings, told = self.folder / "run.toml", self.folder / "found.json"
        settings.write_text(config.to_toml())
        given = f'config="{settings}" rounds={rounds} found="{told}"'
        command = ["flwr", "run", str(APP), "stock", "--stream", "--run-config", given]
        patience = STARTING + LONGEST_ROUND * config.training.rounds
        with (self.folder / "run.log").open("w") as log, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, timeout=patience
            )
        if not told.is_file():
            raise SystemExit(f"plain Flower's run came to no end.\n{last_lines(self.folder)}")
        result: dict[str, Any] = json.loads(told.read_text())
        return result

    def start(self, name: str, *command: str) -> Callable[[], None]:
        """Start a command in the background, its log in NAME.log; return what ends it and its children."""
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return lambda: _end(process)


@contextmanager
def supernodes(nodes: Sequence[NodeConfig], folder: Path, extra: Mapping[str, str]) -> Iterator[Stock]:
    """Yield a SuperLink with a connected SuperNode for each configuration; every process has `extra` set.

    `folder` must be new. SystemExit, with the last lines of the logs, where they do not connect in time.
    """
    link = found(folder / "link", "stock", "localhost", free_port())
    stock = Stock(folder, _environment(folder / "home", link, extra))
    tls = ("--ssl-ca-certfile", link.ca, "--ssl-certfile", link.certificate, "--ssl-keyfile", link.key)
    safe = ("--enable-supernode-auth", "--disable-runtime-dependency-installation")
    control = Control(link)
    with ExitStack() as undo:
        undo.callback(
            stock.start("superlink", "flower-superlink", *map(str, tls), *safe, "--port", str(link.port))
        )
        await_nodes(control, 0, folder)
        for place, node in enumerate(nodes):
            key = folder / f"node-{place}.key"
            control.register(_new_key(key))
            where = ("--superlink", f"127.0.0.1:{link.port}", "--root-certificates", str(link.ca))
            own = ("--auth-supernode-private-key", str(key), "--port", str(free_port()))
            described = " ".join(f"{name}={json.dumps(value)}" for name, value in node.items())
            command = ("flower-supernode", *where, *own, "--node-config", described)
            undo.callback(stock.start(f"node-{place}", *command))
        await_nodes(control, len(nodes), folder)
        yield stock


def await_nodes(control: Control, count: int, logs: Path) -> None:
    """Return once `count` nodes are connected. SystemExit, with the end of every log, if they are late."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        with suppress(LinkError):
            if sum(node.status == "online" for node in control.nodes()) == count:
                return
        time.sleep(0.2)
    raise SystemExit(f"{count} nodes were not connected in {STARTING:.0f} s.\n{last_lines(logs)}")


def last_lines(folder: Path, lines: int = 15) -> str:
    """Return the last lines of every log in `folder`."""
    logs = {log.name: log.read_text(errors="replace").splitlines() for log in sorted(folder.glob("*.log"))}
    return "\n".join(
        line for name, all_lines in logs.items() for line in (f"--- {name}", *all_lines[-lines:])
    )


def _environment(home: Path, link: Federation, extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Flower knows this SuperLink and tells nobody anything."""
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION.format(port=link.port, ca=link.ca))
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "FLWR_HOME": str(home), **quiet, **extra}


def _new_key(path: Path) -> bytes:
    """Write a new node key to `path` and return its public half, in DER."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_bytes(path, private, mode=PRIVATE)
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
