"""InProcessGrid: Flower's Grid over worker processes of this machine, without a network.

The same ServerApp and ClientApp run on it as anywhere. With one worker a message is served in this
process; with N, by N forked processes of one thread each. A site's messages prefer the worker that
served it last, where its cases and network are resident, and the longest known work goes first. What a
reply says never depends on who computed it.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.site import NodeConfig
from common import wire
from common.machine import hide_gpus

logger = logging.getLogger("zamenis.grid")
RUN_ID = 1
SERVER_NODE = 1
FIRST_NODE = 2
A_DAY = 24 * 3600.0
"""Seconds that a message may take unless its sender says otherwise; a first reading of an archive is slow."""
DIED = "the worker that served this site died"
LONGEST_WAIT = 1.0
"""Seconds that one look for replies may block."""


@dataclass
class _Worker:
    """One forked process and what it is busy with."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    message: Message | None = None
    started: float = 0.0


@dataclass
class _Node:
    """One site: its context, its queue, who served it last and how long a message takes."""

    context: Context
    queue: deque[Message] = field(default_factory=deque)
    worker: int = -1
    seconds: float = 0.0
    busy: bool = False


class InProcessGrid(Grid):
    """A grid whose nodes are this machine's own; use as a context manager so that workers end."""

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Iterable[NodeConfig],
        *,
        workers: int,
        timeout: float = A_DAY,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE
        self._app = client_app
        self._timeout = timeout
        self._run = Run.create_empty(run_id=RUN_ID)
        self._nodes = {
            FIRST_NODE + place: _Node(_context(FIRST_NODE + place, config))
            for place, config in enumerate(nodes)
        }
        self._on_cpu = all(node.context.node_config.get("device") == "cpu" for node in self._nodes.values())
        self._serial = 0
        self._done: dict[str, Message] = {}
        self._workers: list[_Worker] = []
        for _ in range(workers if workers > 1 else 0):
            self._workers.append(self._fork())

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    @property
    def run(self) -> Run:
        """The one run of this grid."""
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
        """Return the id of every site."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return every site in Flower's form."""
        return [NodeInfo(node_id=node_id) for node_id in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue each message at its site and return their ids."""
        identifiers = []
        for message in messages:
            self._serial += 1
            message.metadata.__dict__["_message_id"] = str(self._serial)
            self._nodes[message.metadata.dst_node_id].queue.append(message)
            identifiers.append(message.metadata.message_id)
        self._dispatch()
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; if none is, wait a moment for one."""
        wanted = set(message_ids)
        if not wanted & self._done.keys():
            self._serve_here() if not self._workers else self._collect()
        ready = sorted(wanted & self._done.keys(), key=int)
        return [self._done.pop(identifier) for identifier in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and return their replies together, those that came within `timeout` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _serve_here(self) -> None:
        """Serve the next message in this process, sites in turn, earliest message first."""
        queued = [node for node in self._nodes.values() if node.queue]
        if not queued:
            return
        node = min(queued, key=lambda one: int(one.queue[0].metadata.message_id))
        self._finish(serve(self._app, node.queue.popleft(), node.context), node)

    def _finish(self, reply: Message, node: _Node) -> None:
        self._serial += 1
        reply.metadata.__dict__["_message_id"] = str(self._serial)
        self._done[reply.metadata.reply_to_message_id] = reply
        node.busy = False

    def _dispatch(self) -> None:
        """Give every idle worker the best message for it."""
        for place, worker in enumerate(self._workers):
            if worker.message is not None:
                continue
            ready = [node for node in self._nodes.values() if node.queue and not node.busy]
            if not ready:
                return
            node = max(ready, key=lambda one: (one.worker == place, one.worker == -1, one.seconds))
            worker.message = node.queue.popleft()
            worker.started = time.monotonic()
            node.busy, node.worker = True, place
            try:
                worker.pipe.send((worker.message, node.context))
            except OSError:
                self._replace(place, DIED)

    def _collect(self) -> None:
        """Take what workers have finished; replace a worker that died or overran its time."""
        by_pipe = {worker.pipe: place for place, worker in enumerate(self._workers) if worker.message}
        for pipe in wait(list(by_pipe), timeout=LONGEST_WAIT):
            place = by_pipe[pipe]  # type: ignore[index]
            worker = self._workers[place]
            node = self._node_of(worker)
            try:
                reply, node.context = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(place, DIED)
                continue
            node.seconds = time.monotonic() - worker.started
            worker.message = None
            self._finish(reply, node)
        for place, worker in enumerate(self._workers):
            if worker.message and time.monotonic() - worker.started > self._timeout:
                self._replace(place, f"the site needed more than {self._timeout:.0f} s")
        self._dispatch()

    def _replace(self, place: int, words: str) -> None:
        """Answer for a lost worker with an error and fork another in its place."""
        worker = self._workers[place]
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        message, node = worker.message, self._node_of(worker)
        self._workers[place] = self._fork()
        if message is not None:
            logger.warning("%s; its message is lost, a new worker stands in", words)
            site = node.context.node_config["site"]
            self._finish(wire.refuse(message, wire.FAILED, f"{site}: {words}."), node)

    def _node_of(self, worker: _Worker) -> _Node:
        assert worker.message is not None  # noqa: S101 - asked only of a busy worker
        return self._nodes[worker.message.metadata.dst_node_id]

    def _fork(self) -> _Worker:
        """Start a worker; it inherits what is imported, which a fresh process needs seconds for."""
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        others = [ours, *(worker.pipe for worker in self._workers if not worker.pipe.closed)]
        process = fork.Process(target=_work, args=(self._app, theirs, others, self._on_cpu), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def serve(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Return a site's reply; a failure becomes an error reply that names its kind alone."""
    try:
        return client_app(message, context)
    except Exception as error:
        logger.exception("a message failed")
        site = context.node_config["site"]
        return wire.refuse(
            message, wire.FAILED, f"{site}: {type(error).__name__} there; its log has the rest."
        )


def _work(client_app: ClientApp, pipe: Connection, others: list[Connection], on_cpu: bool) -> None:
    """Serve messages until the pipe closes."""
    if on_cpu:
        hide_gpus()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            message, context = pipe.recv()
        except EOFError:
            return
        pipe.send((serve(client_app, message, context), context))


def _context(node_id: int, node_config: NodeConfig) -> Context:
    settings: dict[str, Any] = dict(node_config)
    return Context(run_id=RUN_ID, node_id=node_id, node_config=settings, state=RecordDict(), run_config={})
