"""Secure aggregation at a site: it stands between the coordinator's messages and whoever trains.

A train message that carries a plan of secure aggregation is answered with a masked vector; the keys, the
log and every check stay on this side (`common.secagg.site`), and what trains sees an ordinary message. What
is answered here, repetitions of what was sent before included, passes this hospital's policy as it is now.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from client.cohorts import Cohort, Cohorts, Question, Waits
from client.peers import peers_of
from client.policy import Policy, among, at_most, check, policy_of
from client.site import Node
from client.vault import Vault
from common import wire
from common.bounds import layout_asked
from common.config import from_json
from common.errors import PolicyError, SecAggError, WireError
from common.secagg import numbers, rehearsal, site
from common.secagg.dealing import SECRET
from common.secagg.encoding import digest, dump, load
from common.secagg.identity import Identity, Peer
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
    rehearses,
)
from common.secagg.quantise import Contribution
from common.secagg.reasons import Reason, refusal
from common.secagg.site import Answer, Member
from common.secagg.state import Dealt, Open, SiteRun

logger = logging.getLogger("zamenis.client")
UNKNOWN_KIND = "it answers no such message; install the same version of Zamenis on both sides."
Inner = Callable[[Message], Message]


@dataclass(frozen=True)
class Desk:
    """What a site needs for its part: who it is and whom it knows, what it has sent, what it insists on."""

    member: Member
    vault: Vault
    policy: Policy
    """This hospital's policy as it is now."""
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
            if kind == wire.TRAIN and self.policy.secure_aggregation == "required":
                raise PolicyError("secure-aggregation")
        except (SecAggError, PolicyError) as error:
            if isinstance(error, Waits):
                with self.vault.cohorts(self.policy) as memory:
                    memory.wait(error.cohort)
            logger.warning("refused a %s message: %s", kind, error)
            code = wire.INSECURE if isinstance(error, SecAggError) else wire.FORBIDDEN
            return wire.refuse(message, code, f"{self.member.site}: {error}")
        if kind == wire.TRAIN:
            logger.warning("this hospital's own update leaves it unmasked: policy.toml allows that")
        return inner(message)

    def _query(self, message: Message, kind: str) -> Message:
        fields = wire.read_secured(message)
        run = fields.run
        if kind == wire.FINISH:  # only erases, so whatever the policy says
            self.vault.finish(run)
            return wire.reply_secured(message, wire.Secured(run))
        among(self.policy.messages, ["train"], "messages")
        if kind == wire.REHEARSE:
            return self._rehearse(message, run, load(MaskRequest, fields.request))
        if kind == wire.ADVERTISE:
            member = self.learn(fields.identities)
            told = dump(self._advertise(run, member, _cohort(member, fields.identities)))
        elif kind == wire.DEAL:
            holders = load(Holders, fields.holders)
            told = dump(self._change(run, lambda state: site.deal(state, self.member, holders)))
        else:
            asked = load(UnmaskRequest, fields.request)
            told = dump(self._unmask(run, asked))
        return wire.reply_secured(message, wire.Secured(run, answer=told))

    def _advertise(self, run: str, member: Member, cohort: Cohort) -> Advertisement:
        """Return this hospital's key for a run that may begin over a cohort, or that only rehearses."""

        def witness(before: SiteRun, database: sqlite3.Connection) -> None:
            memory = Cohorts(database, self.policy)
            if rehearses(run):
                memory.rehearse(run)
            else:
                memory.begin(run, cohort)

        return self.vault.change(run, member, lambda state: (state, site.advertise(state, member)), witness)

    def _rehearse(self, message: Message, run: str, request: MaskRequest) -> Message:
        """Mask a public vector, and give away what it was masked with; no data are touched."""
        at_most(self.policy.max_parameters, request.plan.layout.parameters, "max-parameters")
        told = self._change(run, lambda state: rehearsal.rehearse(state, self.member, request))
        bare = replace(told, masked=replace(told.masked, vector=b""))
        return wire.reply_masked(message, wire.Secured(run, answer=dump(bare)), told.masked.vector)

    def _unmask(self, run: str, asked: UnmaskRequest) -> UnmaskAnswer:
        """Answer for a slot that this hospital would still train for."""

        def transition(state: SiteRun) -> tuple[SiteRun, UnmaskAnswer]:
            if state.open is not None and state.open.slot == asked.slot:
                Asked.load(state.open.asked_for).check(self.policy)
            return site.unmask(state, self.member, asked)

        return self._change(
            run, transition, lambda memory, _: memory.unmask(run, asked.slot, asked.survivors)
        )

    def _train(self, message: Message, inner: Inner) -> Message:
        """Review, train, mask, and deal for the next slot in the same transaction."""
        fields, about = wire.read_secured(message), Asked.of(message)
        about.check(self.policy)
        request, payload = load(MaskRequest, fields.request), Payload.of(*wire.payload_of(message))
        run, slot, question = fields.run, request.plan.slot, Question.of(about.instruction, payload)
        at_most(self.policy.max_weight_ratio, request.plan.layout.max_weight, "max-weight-ratio")
        sent = self._change(
            run,
            lambda state: self._review(state, request, payload, about),
            lambda memory, before: memory.review(run, question, _dealt_to(before, slot)),
        )
        contribution = None
        if sent is None:
            reply = inner(wire.unsecured(message))
            if reply.has_error():
                return wire.refuse(message, reply.error.code, reply.error.reason or "")
            contribution = self._contribution(reply, request.plan.layout)
        holders = load(Holders, fields.holders) if fields.holders else None

        def transition(state: SiteRun) -> tuple[SiteRun, tuple[Masked, Dealing | None]]:
            masked, dealing = sent, None
            if masked is None:
                assert contribution is not None  # noqa: S101 - it trained
                state, masked = site.mask(state, self.member, request, payload, contribution)
                state = replace(state, open=replace(cast(Open, state.open), asked_for=about.dump()))
            if holders:
                try:
                    state, dealing = site.deal(state, self.member, holders)
                except SecAggError as error:
                    logger.warning("does not deal for the next slot: %s", error)
            return state, (masked, dealing)

        masked, dealing = self._change(
            run,
            transition,
            lambda memory, before: memory.mask(run, slot, question, _dealt_to(before, slot)),
        )
        return wire.reply_masked(
            message,
            wire.Secured(
                fields.run,
                answer=dump(replace(masked, vector=b"")),
                dealing=dump(dealing) if dealing else b"",
            ),
            masked.vector,
        )

    def _review(
        self, state: SiteRun, request: MaskRequest, payload: Payload, about: Asked
    ) -> tuple[SiteRun, Masked | None]:
        """Judge a plan before training: the vector's bounds are those that the message itself asks for."""
        layout, sent = request.plan.layout, site.review(state, self.member, request, payload)
        if sent is None:
            holders = len(cast(Dealt, state.dealt).holders.sites)
            if layout != layout_asked(about.instruction, about.parameters, holders):
                raise refusal(Reason.OTHER_LAYOUT)
        return state, sent

    def _contribution(self, reply: Message, layout: Layout) -> Contribution:
        """Return what trained as what is masked."""
        told = wire.read_contribution(reply, layout.parameters)
        if (
            len(told.rounding) != SECRET
        ):  # of what is known to all, the sum tells one hospital's from another's
            raise WireError("what trained has no rounding of its own.")
        return Contribution(
            delta=told.delta.numpy(),
            weight=min(told.weight, layout.max_weight),
            metrics={
                "loss-sum": told.loss_sum,
                "episodes": told.episodes,
                "within": told.within,
            },
            rounding_key=digest("rounding", told.rounding, layout),
        )

    def _change(
        self,
        run: str,
        transition: Callable[[SiteRun], tuple[SiteRun, Answer]],
        witness: Callable[[Cohorts, SiteRun], None] = lambda memory, before: None,
    ) -> Answer:
        """Return a transition's answer, where this hospital's memory of cohorts has nothing against it."""
        return self.vault.change(
            run,
            self.member,
            transition,
            lambda before, database: witness(Cohorts(database, self.policy), before),
        )


def _dealt_to(state: SiteRun, slot: int) -> Mapping[str, bytes]:
    """Return the holders, with their keys, of a slot that is not masked in yet; else nobody."""
    return state.dealt.terms.keys if state.dealt and state.dealt.holders.slot == slot else {}


def _cohort(member: Member, named: Mapping[str, bytes]) -> Cohort:
    """Return the hospitals that the coordinator names, and this one, with their keys as pinned here."""
    everyone = {**named, member.site: member.identity.public}
    return Cohort({name: member.roster.peers.get(name, Peer(key)) for name, key in everyone.items()})


@dataclass(frozen=True)
class Asked:
    """What a policy judges of a train message, kept for as long as its slot is open."""

    instruction: wire.Instruction
    parameters: int

    @classmethod
    def of(cls, message: Message) -> Asked:
        """Return what a train message asks."""
        return cls(wire.read_instruction(message), wire.parameters_of(message))

    @classmethod
    def load(cls, text: str) -> Asked:
        """Return what `dump` wrote."""
        told = json.loads(text)
        return cls(wire.Instruction(**told["instruction"]), told["parameters"])

    def dump(self) -> str:
        """Return this as text."""
        return json.dumps(asdict(self))

    def check(self, policy: Policy) -> None:
        """Raise PolicyError, which names the key, where the policy does not allow it."""
        check(policy, "train", self.instruction, from_json(self.instruction.config), self.parameters)


def desk_of(node: Node) -> Desk | None:
    """Return the desk of a node whose secrets lie in a folder of its own (a simulated hospital's)."""
    if node.secrets is None:
        return None
    peers = peers_of(node.secrets / "peers.toml")
    identity = Identity((node.secrets / "identity.key").read_bytes())
    policy = policy_of(node.policy_file)
    member = Member(node.site, identity, peers.roster(node.site, identity), demands(policy))
    return Desk(member, Vault(node.secrets / "vault.db"), policy, learn=lambda _: member)


def demands(policy: Policy) -> numbers.Policy:
    """Return what a hospital's policy demands of every slot."""
    return numbers.Policy(min_cohort=policy.min_cohort, low_threshold=policy.low_threshold)


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
