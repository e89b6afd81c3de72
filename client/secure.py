"""Secure aggregation at a site: it stands between the coordinator's messages and whoever trains.

A train message that carries a plan of secure aggregation is answered with a masked vector; the keys, the
log and every check stay on this side (`common.secagg.site`), and what trains sees an ordinary message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from client.peers import peers_of
from client.policy import policy_of
from client.site import Node
from client.vault import Vault
from common import wire
from common.config import from_json
from common.errors import PolicyError, SecAggError, WireError
from common.secagg import site
from common.secagg.encoding import dump, load
from common.secagg.identity import Identity
from common.secagg.messages import Dealing, Holders, Masked, MaskRequest, Payload, UnmaskRequest
from common.secagg.numbers import Policy
from common.secagg.quantise import Contribution
from common.secagg.site import Answer, Member
from common.secagg.state import SiteRun

logger = logging.getLogger("zamenis.client")
UNKNOWN_KIND = "it answers no such message; install the same version of Zamenis on both sides."
Inner = Callable[[Message], Message]


@dataclass(frozen=True)
class Desk:
    """What a site needs for its part: who it is and whom it knows, what it has sent, what it insists on."""

    member: Member
    vault: Vault
    required: bool
    """Whether a train message without secure aggregation is refused."""
    learn: Callable[[Mapping[str, bytes]], Member]
    """Takes the identity keys that the coordinator names; a new or changed one is unconfirmed."""

    def answer(self, message: Message, inner: Inner) -> Message:
        """Return the reply to any message; what is not this module's is `inner`'s."""
        kind = message.metadata.message_type
        if kind not in wire.KINDS:
            return wire.refuse(message, wire.REFUSED, f"{self.member.site}: {UNKNOWN_KIND}")
        try:
            if kind in wire.SECURE_QUERIES:
                return self._query(message, kind)
            if kind == wire.TRAIN and wire.is_secured(message):
                return self._train(message, inner)
        except SecAggError as error:
            logger.warning("refused a %s message: %s", kind, error)
            return wire.refuse(message, wire.INSECURE, f"{self.member.site}: {error}")
        if kind == wire.TRAIN and self.required:
            forbidden = PolicyError("secure-aggregation")
            return wire.refuse(message, wire.FORBIDDEN, f"{self.member.site}: {forbidden}")
        if kind == wire.TRAIN:
            logger.warning("this hospital's own update leaves it unmasked: policy.toml allows that")
        return inner(message)

    def _query(self, message: Message, kind: str) -> Message:
        fields = wire.read_secured(message)
        run = fields.run
        if kind == wire.FINISH:
            self.vault.finish(run)
            return wire.reply_secured(message, wire.Secured(run))
        if kind == wire.ADVERTISE:
            member = self.learn(fields.identities)
            told = dump(self._change(run, lambda state: (state, site.advertise(state, member)), member))
        elif kind == wire.DEAL:
            holders = load(Holders, fields.holders)
            told = dump(self._change(run, lambda state: site.deal(state, self.member, holders)))
        else:
            asked = load(UnmaskRequest, fields.request)
            told = dump(self._change(run, lambda state: site.unmask(state, self.member, asked)))
        return wire.reply_secured(message, wire.Secured(run, answer=told))

    def _train(self, message: Message, inner: Inner) -> Message:
        """Review, train, mask, and deal for the next slot in the same transaction."""
        fields = wire.read_secured(message)
        request, payload = load(MaskRequest, fields.request), Payload.of(*wire.payload_of(message))
        sent = self._change(
            fields.run, lambda state: (state, site.review(state, self.member, request, payload))
        )
        contribution = None
        if sent is None:
            reply = inner(wire.unsecured(message))
            if reply.has_error():
                return wire.refuse(message, reply.error.code, reply.error.reason or "")
            contribution = self._contribution(message, reply, request, payload)
        holders = load(Holders, fields.holders) if fields.holders else None

        def transition(state: SiteRun) -> tuple[SiteRun, tuple[Masked, Dealing | None]]:
            masked, dealing = sent, None
            if masked is None:
                assert contribution is not None  # noqa: S101 - it trained
                state, masked = site.mask(state, self.member, request, payload, contribution)
            if holders:
                try:
                    state, dealing = site.deal(state, self.member, holders)
                except SecAggError as error:
                    logger.warning("does not deal for the next slot: %s", error)
            return state, (masked, dealing)

        masked, dealing = self._change(fields.run, transition)
        return wire.reply_masked(
            message,
            wire.Secured(
                fields.run,
                answer=dump(replace(masked, vector=b"")),
                dealing=dump(dealing) if dealing else b"",
            ),
            masked.vector,
        )

    def _contribution(
        self, message: Message, reply: Message, request: MaskRequest, payload: Payload
    ) -> Contribution:
        """Return what trained as what is masked."""
        layout = request.plan.layout
        told = wire.read_contribution(reply, layout.parameters)
        instruction = wire.read_instruction(message)
        seed = from_json(instruction.config).seed
        key = dump(("rounding", seed, self.member.site, instruction.server_round, payload.model))
        return Contribution(
            delta=told.delta.numpy(),
            weight=min(told.cases, layout.max_weight),
            metrics={"loss-sum": told.loss_sum, "episodes": told.episodes, "cases": told.cases},
            rounding_key=sha256(key).digest(),
        )

    def _change(
        self,
        run: str,
        transition: Callable[[SiteRun], tuple[SiteRun, Answer]],
        member: Member | None = None,
    ) -> Answer:
        return self.vault.change(run, member or self.member, transition)


def desk_of(node: Node) -> Desk | None:
    """Return the desk of a node whose secrets lie in a folder of its own (a simulated hospital's)."""
    if node.secrets is None:
        return None
    peers = peers_of(node.secrets / "peers.toml")
    identity = Identity((node.secrets / "identity.key").read_bytes())
    demands = Policy(min_cohort=policy_of(node.policy_file).min_cohort)
    member = Member(node.site, identity, peers.roster(node.site, identity), demands)
    return Desk(member, Vault(node.secrets / "vault.db"), required=False, learn=lambda _: member)


def secured(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower's modifier of the ClientApp: a node with secrets of its own takes part in secure aggregation.

    A hospital's worker has none: its node stands before it.
    """
    desk = desk_of(Node.of(context.node_config))
    if desk is None:
        return call_next(message, context)
    try:
        return desk.answer(message, lambda plain: call_next(plain, context))
    except WireError as error:
        return wire.refuse(message, wire.REFUSED, f"{desk.member.site}: {error}")
