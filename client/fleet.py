"""A hospital's line to the coordinator: Flower's Fleet API over TLS, outgoing only, signed by the node's key.

It speaks Flower's wire protocol itself and never asks for a run's app bundle, so that no code of the
coordinator's reaches this machine. `tests/deploy` holds it against a real SuperLink.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.coordinator import NOT_ADMITTED
from common import transport
from common.errors import WireError, ZamenisError
from common.plain_http import keep_plain

Request = TypeVar("Request")
Answer = TypeVar("Answer")
logger = logging.getLogger("zamenis.node")
PATIENCE = 10.0
"""Flower's shortest heartbeat interval in seconds; it calls a node offline after twice that."""

ATTEMPTS, BETWEEN_ATTEMPTS = 4, 0.5
"""How often a piece of a message is asked for while the coordinator has trouble, and seconds in between."""
LONGEST_PIECE, LONGEST_ANSWER = 2**23, 2**20
"""Bytes of one piece of a message (Flower's are of 5 MiB), and of any other answer."""
UNAUTHORIZED = 401
SERVER_ERROR = 500
"""From this status on it is the coordinator that has trouble."""


class LineError(ZamenisError):
    """The coordinator cannot be reached now; worth another try."""


class NotAdmittedError(ZamenisError):
    """The coordinator does not take this node's signature: revoked, unknown, or a clock that is off."""


class UnwantedError(ZamenisError):
    """The coordinator has no use for this request: its run has ended, or it comes at the wrong time."""


class UnusableError(WireError):
    """A message that cannot be used, with the header that a refusal answers."""

    def __init__(self, words: str, message: Message) -> None:
        super().__init__(words)
        self.message = message


class Fleet:
    """An open line; use as a context manager. One thread receives and sends, another keeps it alive."""

    def __init__(self, address: str, ca: bytes, key: EllipticCurvePrivateKey, node_id: int) -> None:
        self._client = FleetHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )
        keep_plain(self._client._client, _longest)
        self._public_key = public_key_to_bytes(key.public_key())
        self._node = FlowerNode(node_id=node_id)
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Announce this node."""
        wanted = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=PATIENCE)
        try:
            try:
                found = _ask(self._client.ActivateNode, wanted)
            except UnwantedError:  # it was killed and still counts as online, or it is not known there
                self._sign_off()
                found = _ask(self._client.ActivateNode, wanted)
        except UnwantedError as error:
            self._client.close()
            raise NotAdmittedError(NOT_ADMITTED) from error
        except BaseException:
            self._client.close()
            raise
        self._node = FlowerNode(node_id=found.node_id)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sign off, so that the next round does not wait for this node."""
        self._closed.set()
        self._heart.join()
        try:
            self._sign_off()
        except ZamenisError:
            logger.info("could not sign off; the coordinator will notice by itself")
        self._client.close()

    def receive(self, *, limit: int = 0) -> Message | None:
        """Return the next message, or None where none waits. WireError: one came and cannot be used."""
        waiting = _ask(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not waiting.messages_list:
            return None
        header, tree = waiting.messages_list[0], waiting.message_object_trees[0]
        run_id = header.metadata.run_id

        def pull(identifier: str) -> bytes:
            wanted = PullObjectRequest(node=self._node, run_id=run_id, object_id=identifier)
            found = _insist(self._client.PullObject, wanted)
            if not found.object_found:
                raise ObjectPullError(identifier, "it is not there")
            if not found.object_available:
                raise ObjectUnavailableError(identifier)
            return found.object_content

        try:
            message = transport.fetch(tree, pull, limit=limit)
        except UnwantedError:
            logger.info("a message's run ended before it had come")
            return None
        except WireError as error:
            raise UnusableError(str(error), message_from_proto(header)) from error
        finally:
            self._confirm(run_id, header.metadata.message_id)
        return message

    def send(self, reply: Message) -> bool:
        """Send a reply; False where its run has ended or its time is over, and nobody waits for it."""
        parcel = transport.take_apart(reply)
        run_id = reply.metadata.run_id
        offer = PushMessagesRequest(
            node=self._node,
            messages_list=[parcel.header],
            message_object_trees=[parcel.tree],
            clientapp_runtime_list=[0.0],
        )
        try:
            taken = _ask(self._client.PushMessages, offer)
        except UnwantedError:
            return False

        def push(identifier: str, content: bytes) -> None:
            piece = PushObjectRequest(
                node=self._node,
                run_id=run_id,
                session_id=taken.session_id,
                object_id=identifier,
                object_content=content,
            )
            if not _ask(self._client.PushObject, piece).stored:
                raise ObjectPushError(identifier, run_id, taken.session_id)

        try:
            parcel.push(set(taken.objects_to_push), push)
        except (ObjectPushError, UnwantedError):
            return False
        return True

    def _confirm(self, run_id: int, message_id: str) -> None:
        receipt = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id)
        try:
            _insist(self._client.ConfirmMessageReceived, receipt)
        except UnwantedError:
            logger.info("the run ended while its message came in")
        except LineError as error:
            logger.info("a message came whole, and the line broke: %s", error)

    def _sign_off(self) -> None:
        try:
            _ask(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))
        except UnwantedError:
            logger.debug("this node did not count as online")

    def _beat(self) -> None:
        beat = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=PATIENCE)
        while not self._closed.wait(PATIENCE / 2):
            try:
                _ask(self._client.SendNodeHeartbeat, beat)
            except ZamenisError as error:
                logger.debug("a heartbeat was lost: %s", error)


def _longest(path: str) -> int:
    return LONGEST_PIECE if path.endswith("/pull-object") else LONGEST_ANSWER


def _insist(call: Callable[[Request], Answer], request: Request) -> Answer:
    """Ask again where the coordinator has trouble for a moment: a message is handed out only once."""
    for _ in range(ATTEMPTS - 1):
        try:
            return _ask(call, request)
        except LineError as error:
            logger.info("asking again: %s", error)
            time.sleep(BETWEEN_ATTEMPTS)
    return _ask(call, request)


def _ask(call: Callable[[Request], Answer], request: Request) -> Answer:
    """Return the coordinator's answer, or raise what its failure means for a node."""
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == UNAUTHORIZED:
            raise NotAdmittedError(NOT_ADMITTED) from error
        if status >= SERVER_ERROR:
            raise LineError(f"the coordinator is not ready (status {status}); it may be starting.") from error
        raise UnwantedError(f"the coordinator declined (status {status}).") from error
    except httpx.HTTPError as error:
        if "certificate" in str(error).lower():
            raise LineError(
                "what answers at the coordinator's address does not show this federation's certificate; "
                "somebody may be between, or the coordinator's address has changed. Tell the coordinator."
            ) from error
        raise LineError(
            f"the coordinator cannot be reached ({type(error).__name__}). It is down, or this network "
            "lets no connection out to it."
        ) from error
