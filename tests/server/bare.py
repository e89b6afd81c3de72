"""Hospitals that do what secure aggregation asks and train nothing: a round of theirs takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Context, Message

from common import wire
from common.errors import SecAggError
from common.secagg import rehearsal, site
from common.secagg.encoding import dump, load
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.layout import Layout
from common.secagg.messages import Holders, MaskRequest, Payload, UnmaskRequest
from common.secagg.numbers import Policy
from common.secagg.quantise import Contribution
from common.secagg.state import SiteRun
from server.gather import Gathered
from server.secure import SecureSum
from tests.server.rounds import NEVER, Lossy, settings

PARAMETERS, BITS, RUN, EPISODES = 40, 16, "run-1", 3
CONFIG = settings(f"training.episodes={EPISODES}", "training.clip-norm=4.0", "training.round-timeout=30")
TRAINING = CONFIG.training_of("reptile")
Twist = Callable[[str, Message, Message], Message]
"""From a hospital's name, what it was asked and its honest reply to the reply that arrives."""


def honest(name: str, asked: Message, reply: Message) -> Message:
    """Return the reply as it is."""
    return reply


class Bare(Lossy):
    """Hospitals `h0`, `h1`, ... at nodes 2, 3, ..., all confirmed by each other, and their coordinator."""

    def __init__(self, size: int, twist: Twist = honest, *, least: int = 0) -> None:
        self.names = [f"h{number}" for number in range(size)]
        super().__init__([{"site": name} for name in self.names], NEVER)
        self._app = self._serve  # type: ignore[assignment]
        self.twist = twist
        self.nodes = {name: node for node, name in enumerate(self.names, start=2)}
        identities = {name: Identity.make() for name in self.names}
        self.keys = {name: identity.public for name, identity in identities.items()}
        roster = Roster({name: Peer(key, confirmed=True) for name, key in self.keys.items()})
        self.members = {name: site.Member(name, each, roster, Policy()) for name, each in identities.items()}
        self.states: dict[tuple[str, str], SiteRun] = {}
        """By run and hospital."""
        self.arrived: list[tuple[str, Message]] = []
        """Every message, in order, with the hospital that got it."""
        self.secure = SecureSum(TRAINING, BITS, PARAMETERS, self.nodes, self.keys, least, RUN)

    def round(
        self, cohort: Sequence[str] | None = None, then: Sequence[str] | None = None, clip: float = 0.0
    ) -> Gathered:
        """Return what a round of a cohort brings; by default of all, who make the next one as well."""
        instruction = wire.Instruction(CONFIG.to_json(), "reptile", clip_norm=clip)
        phi = wire.vector(torch.zeros(PARAMETERS))
        messages = {
            name: wire.instruct(self.nodes[name], wire.TRAIN, instruction, phi)
            for name in (self.names if cohort is None else cohort)
        }
        return self.secure.gather(self, messages, self.names if then is None else then, clip)

    def rejoin(self, name: str) -> None:
        """Give a hospital a new key for the run."""
        state = self.states[RUN, name]
        self.states[RUN, name] = site.rejoin(state, state.epoch + 1)

    def heard(self, kind: str) -> list[str]:
        """Return who got a message of this kind, in order."""
        return [name for name, message in self.arrived if message.metadata.message_type == kind]

    def layouts(self) -> list[Layout]:
        """Return the layouts of every plan that arrived."""
        told = [wire.read_secured(message).request for _, message in self.arrived if is_planned(message)]
        return [load(MaskRequest, request).plan.layout for request in told]

    def delta(self, name: str) -> torch.Tensor:
        """Return what a hospital contributes, `[PARAMETERS]`."""
        return torch.linspace(-0.2, 0.2, PARAMETERS) * (1 + self.names.index(name))

    def _serve(self, message: Message, context: Context) -> Message:
        name, told = str(context.node_config["site"]), wire.read_secured(message)
        self.arrived.append((name, message))
        before = self.states.get((told.run, name)) or site.join(self.members[name], told.run, epoch=1)
        try:
            self.states[told.run, name], reply = self._answer(name, message, told, before)
        except SecAggError as error:
            reply = wire.refuse(message, wire.INSECURE, f"{name}: {error}")
        return self.twist(name, message, reply)

    def _answer(
        self, name: str, message: Message, told: wire.Secured, state: SiteRun
    ) -> tuple[SiteRun, Message]:
        """Return a hospital's state after a message, and its reply."""
        member, kind, secured = self.members[name], message.metadata.message_type, wire.Secured(told.run)
        if is_planned(message):
            request = load(MaskRequest, told.request)
            if kind == wire.REHEARSE:
                state, shown = rehearsal.rehearse(state, member, request)
                masked, bare = shown.masked, replace(shown, masked=replace(shown.masked, vector=b""))
                return state, wire.reply_masked(message, replace(secured, answer=dump(bare)), masked.vector)
            metrics = {"loss-sum": 0.5, "episodes": float(EPISODES), "within": 1.0}
            own = Contribution(self.delta(name).numpy().astype(np.float32), 1, metrics, bytes(32))
            state, masked = site.mask(state, member, request, Payload.of(*wire.payload_of(message)), own)
            if told.holders:
                state, dealing = site.deal(state, member, load(Holders, told.holders))
                secured = replace(secured, dealing=dump(dealing))
            secured = replace(secured, answer=dump(replace(masked, vector=b"")))
            return state, wire.reply_masked(message, secured, masked.vector)
        answer: object = None
        if kind == wire.ADVERTISE:
            answer = site.advertise(state, member)
        elif kind == wire.DEAL:
            state, answer = site.deal(state, member, load(Holders, told.holders))
        elif kind == wire.UNMASK:
            state, answer = site.unmask(state, member, load(UnmaskRequest, told.request))
        return state, wire.reply_secured(message, replace(secured, answer=dump(answer) if answer else b""))


def is_planned(message: Message) -> bool:
    """Return whether a message has a slot's plan."""
    return message.metadata.message_type in {wire.TRAIN, wire.REHEARSE}


def bound(layout: Layout, sites: int) -> float:
    """Return how far a coordinate of so many hospitals' mean may be off."""
    return layout.error_bound(sites, sites)
