"""Hospitals' desks as their nodes set them up, folders, vaults and policies and all, and messages to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.home import Home, Keys, NodeSettings
from client.node import desk_of
from client.pinboard import Pinned, to_toml
from client.policy import guarded
from common import wire
from common.bounds import layout_asked
from common.config import Config, load
from common.secagg import aggregator
from common.secagg.encoding import dump
from common.secagg.encoding import load as read
from common.secagg.identity import Peer, Roster
from common.secagg.layout import Layout
from common.secagg.messages import (
    Advertisement,
    Dealing,
    Holders,
    Masked,
    MaskRequest,
    Payload,
    UnmaskAnswer,
    UnmaskRequest,
)
from common.secagg.numbers import Numbers
from common.seeds import Draws

RUN, PARAMETERS = "run-1", 40
SETTINGS = (
    'task.classes=["normal","nodule"]',
    'model.name="mlp"',
    "experiment.shots=[]",
    "training.clip-norm=4.0",
)


@dataclass
class Desks:
    """Hospitals that have confirmed each other, and what each would contribute if it trained."""

    folder: Path
    size: int
    policy: str = field(default_factory=guarded)
    homes: dict[str, Home] = field(init=False)
    clip_norm: float = 0.0
    """Of the round, as the message says it; 0: what [training] has."""
    column_sums: bool = False
    server_round: int = 1
    run: str = RUN
    own: int = 0
    """Stands for the secrets of the hospitals' data, which decide how they round."""
    trained: list[str] = field(default_factory=list)
    """Who was let train, in order."""

    def __post_init__(self) -> None:
        self.names = [f"h{number:03d}" for number in range(self.size)]
        keys = {name: Keys.make() for name in self.names}
        public = {name: each.identity.public_key().public_bytes_raw() for name, each in keys.items()}
        self.homes = {}
        for number, name in enumerate(self.names, start=1):
            settings = NodeSettings(
                site=name, federation="demo", host="meta.example.org", port=8443, node_id=number
            )
            self.homes[name] = Home.make(
                self.folder / name, settings, keys[name], ca=b"", peers={}, policy=self.policy
            )
            peers = {peer: Peer(key, confirmed=True) for peer, key in public.items() if peer != name}
            self.homes[name].peers_file.write_text(to_toml(Pinned(peers)))
        self.public = public
        self.config: Config = load(None, SETTINGS)
        self.phi = torch.zeros(PARAMETERS)

    def delta(self, name: str) -> torch.Tensor:
        """Return a hospital's own update, which is easy to know again."""
        return torch.linspace(-0.2, 0.2, PARAMETERS) * (1 + self.names.index(name) / 10)

    @property
    def layout(self) -> Layout:
        """The shape of every vector."""
        return layout_asked(wire.read_instruction(self.instruction()), PARAMETERS, self.size)

    def answer(self, name: str, message: Message) -> Message:
        """Return a hospital's reply, by its node's desk as it is now."""

        def train(plain: Message) -> Message:
            self.trained.append(name)
            rounding = Draws.of_seed(self.own, name, self.server_round).key()
            told = wire.Contribution(self.delta(name), 0.5, 1, 1, within=True, rounding=rounding)
            return wire.reply_contribution(plain, told)

        return desk_of(self.homes[name]).answer(message, train)

    def ask(self, name: str, kind: str, **secured: object) -> Message:
        """Return a hospital's reply to one of the protocol's own messages."""
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        asked = wire.ask_secured(1, kind, wire.Secured(self.run, **secured), seconds=60.0)  # type: ignore[arg-type]
        return self.answer(name, asked)

    def advertise(self, name: str, identities: dict[str, bytes] | None = None) -> Advertisement:
        """Return a hospital's key for the run; `identities` are those that the coordinator names."""
        told = self.ask(name, wire.ADVERTISE, identities=identities or self.public)
        return read(Advertisement, wire.read_secured(told).answer)

    def holders(self, slot: int = 1, numbers: Numbers | None = None) -> Holders:
        """Return the request to deal, to all."""
        return aggregator.name_holders(self.run, slot, map(self.advertise, self.names), numbers)

    def deal(self, name: str, holders: Holders) -> Message:
        """Return a hospital's reply to a request to deal."""
        return self.ask(name, wire.DEAL, holders=dump(holders))

    def dealings(self, holders: Holders, names: Iterable[str] = ()) -> list[Dealing]:
        """Return what hospitals deal, by default all."""
        replies = [self.deal(name, holders) for name in names or self.names]
        return [read(Dealing, wire.read_secured(reply).answer) for reply in replies]

    def instruction(self) -> Message:
        """Return the round's train message, without anything of secure aggregation."""
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        told = wire.Instruction(
            self.config.to_json(),
            "reptile",
            self.server_round,
            run="meta-1",
            clip_norm=self.clip_norm,
            column_sums=self.column_sums,
        )
        return wire.instruct(1, wire.TRAIN, told, wire.vector(self.phi), seconds=60.0)

    def requests(self, holders: Holders, dealings: Sequence[Dealing]) -> dict[str, MaskRequest]:
        """Return what an honest coordinator asks of every hospital that dealt."""
        payload = Payload.of(*wire.payload_of(self.instruction()))
        return aggregator.mask_requests(holders, dealings, payload, self.layout)

    def train(self, name: str, request: MaskRequest) -> Message:
        """Return a hospital's reply to a train message with a plan."""
        return self.answer(
            name, wire.secure(self.instruction(), wire.Secured(self.run, request=dump(request)))
        )

    def masked(self, name: str, request: MaskRequest) -> Masked:
        """Return the vector that a hospital sends."""
        secured, vector = wire.read_masked(self.train(name, request))
        told = read(Masked, secured.answer)
        return Masked(told.run, told.slot, told.site, vector, told.signature)

    def unmask(self, name: str, request: UnmaskRequest) -> Message:
        """Return a hospital's reply to a request to unmask."""
        return self.ask(name, wire.UNMASK, request=dump(request))

    def mean(self, slot: int) -> np.ndarray:
        """Return the mean that an honest coordinator gets of a whole slot."""
        holders = self.holders(slot)
        requests = self.requests(holders, self.dealings(holders))
        roster = Roster({name: Peer(key) for name, key in self.public.items()})
        sums = aggregator.Slot(roster, holders, requests[self.names[0]].plan)
        for name, request in requests.items():
            sums.add(self.masked(name, request))
        asked = sums.request()
        for name in self.names:
            sums.answer(unmasked(self.unmask(name, asked)))
        return sums.finish().total.mean


def unmasked(reply: Message) -> UnmaskAnswer:
    """Return the shares in a reply."""
    return read(UnmaskAnswer, wire.read_secured(reply).answer)
