"""Make what Zamenis 0.1.0 leaves on disk: a coordinator's folder and three nodes', in the middle of a run.

Runs on 0.1.0's own code, through its own commands' functions, and needs a checkout of it:

    git worktree add old 923af9f
    cd old && PYTHONPATH=. python ../tests/upgrade/make_0_1_0.py ../tests/upgrade/0_1_0.tar.gz

The hospitals enrol over TLS on this machine, compare the roster's digest, register a table of invented
patients, and take part in a secure run with sums over columns; it is cut off when the vectors of the second
round are in and nobody has unmasked. The keys in the archive were made for it and belong to nobody.

Paths that begin with the folder in which all this happened are written as `@STAGE@`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from client import registration
from client.acquaintance import ask
from client.app import app
from client.dataset import open_hospital
from client.enrol import join
from client.home import Home
from client.node import config_of, desk_of
from client.policy import policy_of
from client.worker import answer
from common import wire
from common.config import Config, load
from common.sections import Data
from server.experiment.attendance import Roll
from server.experiment.conduct import conduct
from server.federation import Federation
from server.runs import new_run
from simulation.grid import FIRST_NODE, InProcessGrid
from tests.enrolling import coordinator, listening

HOSPITALS = ("st-anna", "st-olaf", "st-vera")
COMMIT = "923af9f"
STAGE = "@STAGE@"
LACKING = ("messages", "min-cohort", "max-rounds", "explain")
"""Keys that st-olaf's operator took out of policy.toml, so that 0.1.0 allowed what it liked there."""
SETTINGS = (
    'task.label="finding"',
    'task.classes=["normal","nodule"]',
    'data.standardise="federation"',
    'model.name="mlp"',
    "model.width=4",
    "training.rounds=4",
    "training.inner-steps=3",
    "training.round-timeout=60",
    'experiment.algorithms=["reptile"]',
    "experiment.shots=[]",
)


class Cut(BaseException):
    """The coordinator is gone."""


class Nodes(InProcessGrid):
    """A grid of hospitals' nodes, each answering at its desk; cut off in the middle of the second round."""

    def __init__(self, homes: dict[str, Home]) -> None:
        def serve(message: Message, context: Context) -> Message:
            home = homes[str(context.node_config["site"])]
            compute: Callable[[Message], Message] = lambda plain: answer(app, plain, dict(config_of(home)))  # noqa: E731
            return desk_of(home).answer(message, compute)

        super().__init__(serve, [config_of(home) for home in homes.values()], workers=1)  # type: ignore[arg-type]
        self._ends = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, but for those that would end the second round: columns' sums ended once before."""
        sent = list(messages)
        self._ends += any(one.metadata.message_type == wire.UNMASK for one in sent)
        if self._ends == 3:
            raise Cut
        return super().push_messages(sent)


class Quiet:
    """Progress that is shown to nobody."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase."""
        return lambda: None


def main(archive: Path) -> None:
    """Make the folders, and write them to `archive`."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder).resolve()
        federation, homes = enrol(stage)
        for number, home in enumerate(homes.values()):
            data = write_patients(stage / "data" / home.settings.site, number)
            registration.register(home, data, label="finding")
        homes = {site: Home.load(home.directory) for site, home in homes.items()}
        policy = homes["st-olaf"].policy
        policy.write_text("".join(line for line in statements(policy) if not line.startswith(LACKING)))
        run_until_cut(federation, homes)
        (stage / "expected.json").write_text(json.dumps(expected(homes), indent=1))
        forget(stage)
        pack(stage, archive)


def enrol(stage: Path) -> tuple[Federation, dict[str, Home]]:
    """Found a federation, let every hospital join over TLS, and confirm each other by the roster's digest."""
    there = coordinator(stage / "coordinator")
    certificate, key = there.federation.certificate, there.federation.key
    with listening(there.enrolment(), certificate, key) as server:
        for site in HOSPITALS:
            invitation = there.invite(site)
            token = type(invitation)(**{**invitation.__dict__, "port": server.server_port}).encode()
            join(token, stage / "nodes" / site)
        homes = {site: Home.load(stage / "nodes" / site) for site in HOSPITALS}
        for site, home in homes.items():
            peers = ask(home)
            peers.confirm(site, home.identity, peers.roster(site, home.identity).digest())
    return there.federation, homes


def write_patients(folder: Path, number: int) -> Path:
    """Write a table of 40 invented patients, and return its folder."""
    chance = random.Random(number)
    folder.mkdir(parents=True)
    lines = ["patient,a,b,finding"]
    for patient in range(40):
        ill = chance.random() < 0.5
        a, b = chance.gauss(2.0 * ill, 1), chance.gauss(number, 1)
        lines.append(f"p{patient:02},{a:.4f},{b:.4f},{'nodule' if ill else 'normal'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "schema.toml").write_text('label = "finding"\npatient = "patient"\nnumeric = ["a", "b"]\n')
    return folder


def statements(policy: Path) -> list[str]:
    """Return the statements of a policy.toml, each with its line's end and its own further lines."""
    found: list[str] = []
    for line in policy.read_text().splitlines(keepends=True):
        if found and line.startswith((" ", "]")):
            found[-1] += line
        else:
            found.append(line)
    return found


def run_until_cut(federation: Federation, homes: dict[str, Home]) -> None:
    """Begin a run, and lose the coordinator in its second round."""
    run = new_run(federation, configuration())
    names = {FIRST_NODE + place: site for place, site in enumerate(homes)}
    identities = {site: home.identity.public for site, home in homes.items()}
    with Nodes(homes) as grid:
        try:
            conduct(grid, run.config, run.folder, Quiet(), Roll(names, 60.0, print), identities)
        except Cut:
            return
    raise SystemExit("the run was to be cut off, and ended.")


def configuration() -> Config:
    """Return the run's configuration."""
    return load(None, list(SETTINGS))


def expected(homes: dict[str, Home]) -> dict[str, Any]:
    """Return what 0.1.0 made of these folders, for the tests to compare with."""
    return {
        "commit": COMMIT,
        "sides": {site: sides(home) for site, home in homes.items()},
        "confirmed": {
            site: {name: peer.confirmed for name, peer in home.peers().pinned.items()}
            for site, home in homes.items()
        },
        "policies": {
            site: policy_of(home.policy).model_dump(mode="json", by_alias=True)
            for site, home in homes.items()
        },
        "refusals": {site: refusals(home) for site, home in homes.items()},
    }


def refusals(home: Home) -> dict[str, list[Any]]:
    """Return the codes and words with which a node answers a coordinator of the next protocol."""
    config, found = configuration(), {}
    for kind in (wire.DESCRIBE, wire.TRAIN):
        instruction = wire.Instruction(config.to_json(), "reptile", 1, protocol=wire.PROTOCOL + 1)
        message = wire.instruct(1, kind, instruction, wire.vector(torch.zeros(3)))
        reply = answer(app, message, dict(config_of(home)))
        found[kind] = [reply.error.code, reply.error.reason]
    return found


def sides(home: Home) -> dict[str, list[str]]:
    """Return the patients of either side, by name: in a table they are numbered in their names' order."""
    (entry,) = home.settings.data
    hospital = open_hospital(Path(entry.folder), Data(), entry.task, state=Path(entry.state))
    return {
        side: [f"p{number:02}" for number in cases.patients.unique().tolist()]
        for side, cases in (("adaptation", hospital.adaptation), ("test", hospital.test))
    }


def forget(stage: Path) -> None:
    """Take the stage's own path out of every text file, and what only a running process needs."""
    for path in stage.rglob("*"):
        if path.suffix in (".toml", ".json", ".csv", ".log") and str(stage) in path.read_text():
            path.write_text(path.read_text().replace(str(stage), STAGE))
    for leftover in (*stage.rglob("*-wal"), *stage.rglob("*-shm")):
        raise SystemExit(f"{leftover}: a database was left open.")


def pack(stage: Path, archive: Path) -> None:
    """Write the stage's folders to `archive` with their modes, and nobody's name."""

    def nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    for path in stage.rglob("*"):
        if path.is_file() and str(stage).encode() in path.read_bytes():
            raise SystemExit(f"{path}: holds this machine's path.")
    partial = archive.with_suffix(".part")
    with tarfile.open(partial, "w:gz") as file:
        for folder in sorted(stage.iterdir()):
            file.add(folder, folder.name, filter=nameless)
    shutil.move(partial, archive)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]).resolve())
