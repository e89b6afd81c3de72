"""The standing worker: one process that has Python, PyTorch and the hospital's cases ready for every message.

It starts from a clean fork server, so it inherits neither the node's keys nor its line, and it reaches no
network, no other program and none but its own files (`client.confine`, `client.reach`). A message costs one
pass through a pipe; a worker that dies costs its message.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from client.confine import Walls, confine
from client.reach import Reach
from client.site import NodeConfig
from common import transport
from common.logs import OneLine
from common.machine import hide_gpus

logger = logging.getLogger("zamenis.node")
GRACE = 0.5
"""Seconds between two looks at whether the node is to stop while a worker computes."""
PRELOADED = (__name__, "client.app", "torch._dynamo")
"""What the fork server imports for all workers; PyTorch's optimisers need the last at their first step."""


class WorkerError(Exception):
    """The worker was lost with its message; the next one finds another worker."""


@dataclass
class Worker:
    """Serves messages one at a time, starting a process where none stands."""

    config: NodeConfig
    reach: Reach
    seconds: float
    """Longest time for one message; a worker that needs more is killed."""
    _process: BaseProcess | None = field(default=None, repr=False)
    _pipe: Connection | None = field(default=None, repr=False)
    _files: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    _walls: Walls | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """The standing process, if any."""
        return self._process.pid if self._process else None

    @property
    def walls(self) -> Walls | None:
        """What confines the standing process; None while it has not said so."""
        with suppress(EOFError, OSError):  # it died; whoever has a message for it will learn that
            self._arrived(0.0)
        return self._walls

    def start(self) -> None:
        """Start the process ahead of its first message, or anew where its files are others by now."""
        written = self.reach.writable()
        files = self.reach.identity()
        if self._process and self._process.is_alive() and files == self._files:
            return
        self.stop()
        self._files = files
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(list(PRELOADED))
        self._pipe, theirs = server.Pipe()
        arguments = (theirs, dict(self.config), self.reach.readable(), written)
        self._process = server.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def serve(self, message: Message, *, stopping: Callable[[], bool] = lambda: False) -> Message:
        """Return the reply. WorkerError: the process died, overran its time, or the node is stopping."""
        self.start()
        assert self._pipe is not None  # noqa: S101 - start has seen to it
        try:
            self._pipe.send_bytes(transport.to_bytes(message))
            left = self.seconds
            while not self._arrived(min(GRACE, left)):
                left -= GRACE
                if left <= 0 or stopping():
                    self.stop()
                    raise WorkerError("was stopped" if stopping() else f"needed over {self.seconds:.0f} s")
            return transport.from_bytes(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            self.stop()
            raise WorkerError("died") from error

    def _arrived(self, seconds: float) -> bool:
        """Return whether a reply comes within so many seconds; before the first it says which walls stand."""
        if self._pipe is None or not self._pipe.poll(seconds):
            return False
        if self._walls is None:
            self._walls = Walls(**json.loads(self._pipe.recv_bytes()))
            return self._pipe.poll()
        return True

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process:
            self._process.kill()
            self._process.join()
        if self._pipe:
            self._pipe.close()
        self._process = self._pipe = self._walls = None


def _work(
    pipe: Connection,
    config: dict[str, str | int | float | bool],
    read: Sequence[Path],
    write: Sequence[Path],
) -> None:
    """Say which walls stand, then serve messages until the pipe closes; the last of `write` is the log."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    _leave_tracker()
    if config.get("device") == "cpu":
        hide_gpus()
    _give_way()
    walls = confine(read, write)
    _log_to(write[-1])
    if walls.missing:
        logger.warning(
            "worker started, NOT kept from %s: this machine's Linux does not let it", walls.missing
        )
    else:
        logger.info("worker started, without network, other programs or files that are not its own")
    pipe.send_bytes(json.dumps(asdict(walls)).encode())
    from client.app import app  # after confine: it starts threads

    while True:
        try:
            message = transport.from_bytes(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(transport.to_bytes(answer(app, message, config)))


def _log_to(path: Path) -> None:
    """Log to a file, and what a person should know to the node's own log, which is this process's stderr."""
    aloud = logging.StreamHandler()
    aloud.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8"), aloud]
    for handler in handlers:
        handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, force=True, handlers=handlers)


def _leave_tracker() -> None:
    """Let go of the pipe to Python's resource tracker, which deletes shared memory at anybody's word."""
    tracker = resource_tracker.getfd()
    if tracker is not None:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), tracker, inheritable=False)


def _give_way() -> None:
    """Be the first that Linux ends where memory runs out: a message is lost then, and nothing else is."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def answer(app: ClientApp, message: Message, config: dict[str, str | int | float | bool]) -> Message:
    """Return the ClientApp's reply; the app turns its own failures into words, so nothing is caught here."""
    TaskIdentity.run_id, TaskIdentity.node_id = message.metadata.run_id, message.metadata.dst_node_id
    TaskIdentity.task_id = 0
    context = Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config=dict(config),
        state=RecordDict(),
        run_config={},
    )
    return app(message, context)
