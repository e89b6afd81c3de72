"""The coordinator's side of enrolment: a request's bytes in, an answer's bytes out; no web framework here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from common.enrolment import (
    MAX_APPLICATION,
    MAX_QUESTION,
    REFUSALS,
    Application,
    Code,
    Greeting,
    Refusal,
    RosterAnswer,
    RosterQuestion,
    Welcome,
    refused,
)
from common.errors import EnrolmentRefused, SecAggError
from common.secagg.encoding import load
from common.secagg.vouching import Vouch
from server.entry import Status
from server.federation import Federation
from server.roster import Roster

T = TypeVar("T", Application, RosterQuestion)

logger = logging.getLogger("zamenis.enrolment")


class Enrolment:
    """Answers the requests of `common.enrolment`, from any number of threads.

    `register_node` makes a node's public key (DER) known to Flower and returns Flower's number for it: see
    `Roster.register`. It may be called again after a crash, never by two at once.
    """

    def __init__(
        self,
        federation: Federation,
        roster: Roster,
        protocol: int,
        register_node: Callable[[bytes], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._federation = federation
        self._roster = roster
        self._protocol = protocol
        self._register_node = register_node
        self._clock = clock
        self._ca = federation.ca.read_text(encoding="ascii")

    def greeting(self) -> bytes:
        """Return who this is, as JSON: what anybody may know."""
        name = self._federation.name
        return Greeting(name=name, protocol=self._protocol, ca=self._ca, time=self._clock()).to_json()

    def apply(self, body: bytes) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON that answer an application."""
        return self._answer(lambda: self._enrol(_read(Application, body)).to_json())

    def tell_roster(self, body: bytes) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON that answer a question for the roster."""
        return self._answer(
            lambda: self._roster_for(_read(RosterQuestion, body, longest=MAX_QUESTION)).to_json()
        )

    def _roster_for(self, question: RosterQuestion) -> RosterAnswer:
        keys = self._roster.identity_keys()
        own = keys.get(question.hospital)
        proven = question.is_proven(self._federation.name, own or _nobodys_key(), self._clock())
        if own is None or not proven:
            raise refused(Code.UNKNOWN)
        self._roster.take_about(question.hospital, question.about)
        if question.vouches:
            self._roster.take_vouches(question.hospital, self._words_of(question, own))
        return RosterAnswer(identity_keys=keys, vouches=self._roster.vouches())

    def _words_of(self, question: RosterQuestion, key: bytes) -> Iterator[Vouch]:
        """Yield what the hospital that asks has truly signed of itself for this federation."""
        for encoded in question.vouches:
            with suppress(SecAggError):
                one = load(Vouch, encoded)
                says = (one.federation, one.voucher, one.voucher_key)
                if says == (self._federation.name, question.hospital, key) and one.is_proven():
                    yield one

    def _answer(self, answer: Callable[[], bytes]) -> tuple[int, bytes]:
        try:
            return 200, answer()
        except EnrolmentRefused as error:
            code = Code(error.code)
        except Exception:
            logger.exception("a hospital's request could not be answered")
            code = Code.UNAVAILABLE
        status, words = REFUSALS[code]
        return status, Refusal(code=code, words=words).to_json()

    def _enrol(self, application: Application) -> Welcome:
        """Check the proofs before the roster is asked, so that nobody learns from them who is in it."""
        if not application.is_proven(self._federation.name):
            raise refused(Code.MALFORMED)
        entry = self._roster.enrol(application, now=self._clock(), approval=self._federation.approval)
        if entry.status is Status.PENDING:
            logger.info("%s has applied and waits to be accepted", entry.hospital)
            return Welcome(status="pending", hospital=entry.hospital)
        entry = self._roster.register(entry.hospital, self._register_node)
        logger.info("%s is enrolled as node %d", entry.hospital, entry.node_id)
        return Welcome(
            status="enrolled",
            hospital=entry.hospital,
            node_id=entry.node_id,
            identity_keys=self._roster.identity_keys(),
        )


def _nobodys_key() -> bytes:
    """Return a key to verify against for a hospital that is not there, so that it takes as long."""
    return Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def _read(kind: type[T], body: bytes, *, longest: int = MAX_APPLICATION) -> T:
    if len(body) > longest:
        raise refused(Code.MALFORMED)
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        raise refused(Code.MALFORMED) from None
