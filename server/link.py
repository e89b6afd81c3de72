"""A run over the real network: Flower's Grid on the coordinator's own SuperLink.

The coordinator's process takes the run's task itself, so that it can show progress, be interrupted and go
on; no app bundle is ever loaded. `tests/deploy` holds it against a real SuperLink.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from common import transport, wire
from common.errors import LinkError, WireError
from common.files import write_text
from common.object_tree import identifiers
from common.plain_http import keep_plain
from server.control import Control, Secret, UnwantedError, asked
from server.exchange import exchange
from server.federation import Federation

logger = logging.getLogger("zamenis.server")
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
HEARTBEAT = 10.0
"""Seconds between two signs of life; the SuperLink ends a run after a minute without."""
SLACK = 64 * 2**20
"""Bytes by which a reply may be longer than twice the longest message that was sent."""
PATIENCE = 60.0
"""Seconds in which the SuperLink has to offer the task of a run that it has just started."""


@contextmanager
def open_run(federation: Federation, folder: Path) -> Iterator[LinkGrid]:
    """Begin the run in `folder`, whose name hospitals show, and yield its grid; it ends with the block.

    A file there keeps Flower's number of it: where its coordinator was killed, the next one ends it first, so
    that no hospital goes on with work that nobody waits for.
    """
    memory = folder / "flower-run"
    with Control(federation) as control:
        with suppress(OSError, ValueError, UnwantedError):
            control.stop_run(int(memory.read_text(encoding="ascii")))
        run_id = control.start_run()
        write_text(memory, str(run_id))
        grid = LinkGrid(federation, *_take(federation, control, run_id), folder.name)
    status, details = SubStatus.FAILED, "the coordinator stopped it"
    try:
        yield grid
        status, details = SubStatus.COMPLETED, ""
    finally:
        grid.close(status, details)


@dataclass(frozen=True)
class Arrival:
    """A reply on its way: its header, its tree, and the pieces that have come."""

    header: Header
    tree: ObjectTree
    pieces: dict[str, bytes]

    def message(self, limit: int) -> Message:
        """Return the reply, or in its place an error where its pieces never came, or come to too much."""
        try:
            return transport.put_together(self.tree, self.pieces, limit=limit)
        except WireError:
            return transport.broken(self.header)


class LinkGrid(Grid):
    """The connected hospitals, for one run."""

    def __init__(self, federation: Federation, run_id: int, token: str, name: str) -> None:
        self._name = name
        self._client = _client(federation, RuntimeTokenHttpInterceptor(token))
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._closed = threading.Event()
        self._arriving: dict[str, Arrival] = {}
        self._longest = 0
        given = asked(self._client.PullTaskInput, PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run_id
        TaskIdentity.node_id = given.context.node_id
        self._run = Run.create_empty(run_id=run_id)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    @property
    def run(self) -> Run:
        """The run that this grid is for."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Take on another run's identity."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message; Flower keeps this for older programs."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the id of every connected node."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return every connected node."""
        return list(asked(self._client.GetNodes, GetNodesRequest()).nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages one by one, so that memory holds one, and return their ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, one at a time as they are taken.

        A reply is announced before its pieces arrive; one whose pieces never come keeps nobody waiting.
        """
        wanted = set(message_ids) - self._arriving.keys()
        if wanted:
            found = asked(self._client.PullMessages, PullAppMessagesRequest(message_ids=wanted))
            for header, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                self._arriving[header.metadata.reply_to_message_id] = Arrival(header, tree, {})
        for answered in [known for known in message_ids if known in self._arriving]:
            arrival = self._arriving[answered]
            if not self._advance(arrival):
                continue
            del self._arriving[answered]
            receipt = ConfirmMessageReceivedRequest(
                node=self._node,
                run_id=self._run.run_id,
                message_object_id=arrival.header.metadata.message_id,
            )
            asked(self._client.ConfirmMessageReceived, receipt)
            yield arrival.message(self._limit)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return those replies that come within `timeout` seconds."""
        replies = exchange(self, list(messages), timeout=float("inf") if timeout is None else timeout)
        return [reply for _, reply in replies]

    def close(self, status: str, details: str) -> None:
        """End the run; where the SuperLink is gone, it will notice by itself."""
        self._closed.set()
        self._heart.join()
        try:
            done = PushTaskOutputRequest(sub_status=status, details=details)
            asked(self._client.PushTaskOutput, done)
        except LinkError as error:
            logger.warning("the run's end could not be told: %s", error)
        self._client.close()

    def _push(self, message: Message) -> str:
        wire.name_run(message, self._name)
        parcel = transport.take_apart(message)
        offer = PushAppMessagesRequest(messages_list=[parcel.header], message_object_trees=[parcel.tree])
        taken = asked(self._client.PushMessages, offer)

        pushed = 0

        def push(identifier: str, content: bytes) -> None:
            nonlocal pushed
            pushed += len(content)
            piece = PushObjectRequest(
                node=self._node,
                run_id=self._run.run_id,
                session_id=taken.session_id,
                object_id=identifier,
                object_content=content,
            )
            if not asked(self._client.PushObject, piece).stored:
                raise ObjectPushError(identifier, self._run.run_id, taken.session_id)

        try:
            parcel.push(set(taken.objects_to_push), push)
            self._longest = max(self._longest, pushed)
        except ObjectPushError as error:
            raise LinkError("the SuperLink lost a message that it was given; resume the run.") from error
        return str(taken.message_ids[0]) if taken.message_ids else ""

    def _advance(self, arrival: Arrival) -> bool:
        """Take the pieces that are there; return whether nothing more is to be waited for."""
        for identifier in identifiers(arrival.tree):  # the guard has let none pass that raises
            if identifier in arrival.pieces:
                continue
            wanted = PullObjectRequest(node=self._node, run_id=self._run.run_id, object_id=identifier)
            found = asked(self._client.PullObject, wanted)
            if not found.object_found:
                arrival.pieces.clear()
                return True
            if not found.object_available:
                return False
            arrival.pieces[identifier] = found.object_content
            if sum(map(len, arrival.pieces.values())) > self._limit:
                logger.warning("a reply is far longer than what it answers; it is dropped")
                arrival.pieces.clear()
                return True
        return True

    @property
    def _limit(self) -> int:
        """Bytes of the longest reply."""
        return 2 * self._longest + SLACK

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            try:
                asked(self._client.SendTaskHeartbeat, SendTaskHeartbeatRequest())
            except LinkError as error:
                logger.warning("%s", error)


def _take(federation: Federation, control: Control, run_id: int) -> tuple[int, str]:
    """Return a run's id and the token of its task, as Flower's executor would take it."""
    signed = SuperExecAuthHttpInterceptor(
        master_secret=federation.superexec_secret.read_bytes(), protected_methods={ACQUIRE}
    )
    client = _client(federation, signed)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            found = asked(client.AcquireTask, wanted)
            if found.token and found.task.run_id == run_id:
                return run_id, found.token
            if found.token:
                control.stop_run(found.task.run_id)  # of a coordinator that ended before it took its task
            else:
                time.sleep(0.05)
    finally:
        client.close()
    raise LinkError("the SuperLink does not hand out the run's task; its log says why.")


def _client(federation: Federation, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
    client = RuntimeHttpClient.from_server_address(
        f"127.0.0.1:{federation.port}",
        insecure=False,
        root_certificates=federation.ca.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            Secret(federation),
            interceptor,
        ],
    )
    keep_plain(client._client)
    return client
