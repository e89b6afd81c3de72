"""More hospitals than this machine has room for processes: in one, each with its own folder, keys and line.

Everything a hospital is before the coordinator is real: it joined through the gateway, its operator confirmed
the others, it registered a table, and it answers by its desk and vault. Only its worker is not a process of
its own: the ClientApp runs in this one, for one hospital at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import typer
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from typer.testing import CliRunner

from client.app import app as client_app
from client.cli import app as hospital_commands
from client.home import Home
from client.node import desk_of
from client.site import NodeConfig
from common import wire
from common.bounds import layout_of
from common.config import Config
from common.secagg import aggregator
from common.secagg.encoding import dump, load
from common.secagg.identity import Peer, Roster
from common.secagg.messages import Advertisement, Dealing, Holders, MaskRequest, Payload, UnmaskRequest
from common.secagg.numbers import Numbers
from server.cli import app as coordinator_commands
from server.exchange import exchange
from server.federation import Federation
from simulation.rehearse import Rehearsal
from tests.conftest import write_table_hospital
from tests.deploy.stage import Impostor

PATIENCE = 120.0
"""Seconds within which everybody answers."""


def command(commands: typer.Typer, *words: str) -> str:
    """Return what one of our commands printed, which must have succeeded."""
    done = CliRunner().invoke(commands, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@dataclass
class Crowd:
    """Hospitals that have confirmed each other, connected to the coordinator's service."""

    rehearsal: Rehearsal
    config: Config
    homes: dict[str, Home] = field(default_factory=dict)
    updates: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """What each was let compute, in order."""
    _computing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def federation(self) -> Federation:
        """The coordinator's folder."""
        return Federation.load(self.rehearsal.coordinator)

    @property
    def identities(self) -> dict[str, bytes]:
        """Every hospital's identity key."""
        return {name: home.identity.public for name, home in self.homes.items()}

    @property
    def nodes(self) -> dict[str, int]:
        """Flower's number of every hospital's node."""
        return {name: home.settings.node_id for name, home in self.homes.items()}

    def answer(self, message: Message, config: NodeConfig) -> Message:
        """Answer as a hospital's node does, by its desk and policy as they are now."""
        name = str(config["site"])

        def compute(plain: Message) -> Message:
            run, node = plain.metadata.run_id, plain.metadata.dst_node_id
            context = Context(run, node, dict(config), RecordDict(), {})
            with self._computing:
                reply = client_app(plain, context)
            assert not reply.has_error(), reply.error
            delta = wire.read_contribution(reply, wire.parameters_of(plain)).delta
            self.updates.setdefault(name, []).append(delta)
            return reply

        return desk_of(self.homes[name]).answer(message, compute)

    def tell(self, name: str, *words: str) -> str:
        """Return what a command of a hospital's printed."""
        return command(hospital_commands, *words, "--dir", str(self.homes[name].directory))

    def join(self, name: str, policy: str) -> None:
        """Let a hospital join with a token, allow what this policy does, and register a table."""
        token = command(coordinator_commands, "admit", name, "--dir", str(self.rehearsal.coordinator))
        node = self.rehearsal.node(name)
        command(hospital_commands, "join", token.strip(), str(node))
        home = Home.load(node)
        home.policy.write_text(policy)
        self.homes[name] = home.with_settings(
            home.settings.model_copy(update={"threads": 1, "device": "cpu"})
        )
        table = write_table_hospital(self.rehearsal.stage / "tables" / name, seed=len(self.homes))
        task = self.config.task
        self.tell(name, "register", str(table), "--label", task.label, "--classes", ",".join(task.classes))
        self.homes[name] = Home.load(node)

    def confer(self) -> None:
        """Let every operator read out its own fingerprint to all others."""
        read_out = {name: "".join(home.fingerprint.split()) for name, home in self.homes.items()}
        for name in self.homes:
            self.tell(name, "confirm", *(f"{one}={heard}" for one, heard in read_out.items() if one != name))


@contextmanager
def crowd(rehearsal: Rehearsal, config: Config, names: Iterable[str], policy: str) -> Iterator[Crowd]:
    """Let hospitals join a running federation and confirm each other; yield them connected."""
    found = Crowd(rehearsal, config)
    for name in names:
        found.join(name, policy)
    found.confer()
    with ExitStack() as lines:
        for home in found.homes.values():
            lines.enter_context(Impostor(home, found.answer, pause=1.0))
        yield found


@dataclass
class Coordinator:
    """One run of secure aggregation, message by message, over a real grid: what is asked is the test's."""

    crowd: Crowd
    grid: Grid
    run: str
    phi: torch.Tensor

    @property
    def names(self) -> list[str]:
        """Every hospital."""
        return sorted(self.crowd.homes)

    def exchange(self, messages: Mapping[str, Message]) -> dict[str, Message]:
        """Send messages by hospital and return all replies."""
        names = list(messages)
        arrived = exchange(self.grid, list(messages.values()), timeout=PATIENCE)
        replies = {names[place]: reply for place, reply in arrived}
        assert replies.keys() == messages.keys()
        return replies

    def ask(self, kind: str, told: Mapping[str, wire.Secured]) -> dict[str, Message]:
        """Return every hospital's reply to one of the protocol's own messages."""
        nodes = self.crowd.nodes
        return self.exchange(
            {name: wire.ask_secured(nodes[name], kind, one, seconds=PATIENCE) for name, one in told.items()}
        )

    def advertise(
        self, names: Iterable[str], identities: Mapping[str, bytes], run: str = ""
    ) -> list[Advertisement]:
        """Return hospitals' keys for a run; `identities` are those that they are told."""
        told = wire.Secured(run or self.run, identities=identities)
        replies = self.ask(wire.ADVERTISE, dict.fromkeys(names, told))
        return [load(Advertisement, wire.read_secured(reply).answer) for reply in replies.values()]

    def holders(self, slot: int, numbers: Numbers | None = None) -> Holders:
        """Return a request to deal, to all."""
        told = self.advertise(self.names, self.crowd.identities)
        return aggregator.name_holders(self.run, slot, told, numbers)

    def requests(self, holders: Holders) -> dict[str, MaskRequest]:
        """Let everybody deal and return what an honest coordinator asks next."""
        replies = self.ask(
            wire.DEAL, dict.fromkeys(self.names, wire.Secured(self.run, holders=dump(holders)))
        )
        dealings = [load(Dealing, wire.read_secured(reply).answer) for reply in replies.values()]
        payload = Payload.of(*wire.payload_of(self.instruction(self.names[0])))
        config = self.crowd.config
        layout = layout_of(config.training, config.secure_aggregation.bits, len(self.phi), len(holders.sites))
        return aggregator.mask_requests(holders, dealings, payload, layout)

    def instruction(self, name: str) -> Message:
        """Return a round's train message, without anything of secure aggregation."""
        told = wire.Instruction(self.crowd.config.to_json(), "reptile", 1, run="meta-1")
        return wire.instruct(
            self.crowd.nodes[name], wire.TRAIN, told, wire.vector(self.phi), seconds=PATIENCE
        )

    def train(self, requests: Mapping[str, MaskRequest]) -> dict[str, Message]:
        """Return hospitals' replies to a train message with these plans."""
        return self.exchange(
            {
                name: wire.secure(self.instruction(name), wire.Secured(self.run, request=dump(request)))
                for name, request in requests.items()
            }
        )

    def unmask(self, requests: Mapping[str, UnmaskRequest]) -> dict[str, Message]:
        """Return hospitals' replies to requests to unmask."""
        told = {name: wire.Secured(self.run, request=dump(request)) for name, request in requests.items()}
        return self.ask(wire.UNMASK, told)

    @property
    def roster(self) -> Roster:
        """Every hospital's key, as the coordinator has it."""
        return Roster({name: Peer(key) for name, key in self.crowd.identities.items()})
