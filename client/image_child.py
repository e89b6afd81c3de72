"""Reading images in a child process, so that no file stops a pass.

Decoders are C and C++ code, which some damaged files bring down, or keep busy for ever; others unpack to more
than a machine has. The child reads one file after the other within limits on processor time and memory. Where
it dies, the file that it had open is unreadable, and the next one gets a new child. What it answers is taken
as plain numbers and texts: a decoder that a file has taken over can spoil what it reads, and nothing else.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from client.dicom import open_instance
from client.header import Header
from client.preflight import Reason, refuse
from common.errors import Refused
from common.machine import FORKS, cores

if sys.platform != "win32":
    import resource

SECONDS = 5
"""Processor time for one file."""
MEMORY = 2**30
"""Bytes for one file, beside what the process takes anyway."""
KEPT = 2**26
"""Bytes of freed memory that stay with the process."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""
MOST_CHILDREN = 8
PATIENCE = 120.0
"""Seconds until a child that uses no processor time is given up."""
BEYOND = "Export the file again: reading it fails, or takes more than 5 s or 1 GB."


class ImageChild:
    """A context whose child reads images; the child starts with the first of them."""

    def __init__(self) -> None:
        self._child = 0
        """Its process id; 0: none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @contextmanager
    def open(self, path: Path | str) -> Iterator[Opened]:
        """Open the file at `path` and read its header; raises Refused, whatever is wrong with it."""
        if not self._child:
            self._start()
        self._tell(os.fsencode(path))
        opened = Opened(self, self._header(self._answer()))
        try:
            yield opened
        finally:
            if not opened.asked:
                self._tell(b"")
            elif not opened.answered:
                self._end()

    def _pixels(self, size: int, channels: int) -> Float[Tensor, "channel height width"]:
        told = self._answer()
        numbers = np.frombuffer(told, "<f4")
        if len(numbers) != channels * size * size or not np.isfinite(numbers).all():
            raise refuse(Reason.UNREADABLE, BEYOND)
        return torch.from_numpy(numbers.copy()).view(channels, size, size)

    def _answer(self) -> bytes:
        """Return what the child says to what it was told. Refused: it says so, or it died."""
        with suppress(OSError, EOFError):
            if self._ready.poll(1000 * PATIENCE):
                told = self._answers.recv_bytes()
                if told[:1] == ANSWER:
                    return told[1:]
                reason, remedy = (str(text) for text in json.loads(told[1:]))
                raise refuse(Reason(reason), remedy)
        self._end()
        raise refuse(Reason.UNREADABLE, BEYOND)

    def _tell(self, question: bytes) -> None:
        with suppress(OSError):  # it died; the answer that does not come tells
            self._questions.send_bytes(question)

    def _header(self, answer: bytes) -> Header:
        try:
            return Header.from_json(answer)
        except ValueError:
            self._end()  # it still has the file open
            raise refuse(Reason.UNREADABLE, BEYOND) from None

    def _start(self) -> None:
        """Fork: a confined worker may start no other program, nor one that is a daemon a process."""
        asked, self._questions = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        self._child = os.fork()
        if self._child == 0:
            try:
                _close_all_but(asked.fileno(), answers.fileno())
                _serve(asked, answers)
            finally:
                os._exit(1)
        asked.close()
        answers.close()
        self._ready = select.poll()  # `Connection.poll` makes one anew at every call
        self._ready.register(self._answers, select.POLLIN)

    def _end(self) -> None:
        """Let the child go; kill it, since within a decoder it hears nothing."""
        child, self._child = self._child, 0
        if child:
            self._questions.close()
            self._answers.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class ImageChildren:
    """A context whose children read images, as many at once as this process may use processors."""

    def __init__(self) -> None:
        self.at_once = min(cores(), MOST_CHILDREN)
        """How many images can be open at once."""
        self._idle = [ImageChild() for _ in range(self.at_once)]
        self._children = ExitStack()

    def __enter__(self) -> Self:
        for child in self._idle:
            self._children.enter_context(child)
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    @contextmanager
    def open(self, path: Path | str) -> Iterator[Opened]:
        """Open the file at `path` as `ImageChild.open` does; at most `at_once` are open."""
        child = self._idle.pop()
        try:
            with child.open(path) as opened:
                yield opened
        finally:
            self._idle.append(child)


class ImagesHere(AbstractContextManager["ImagesHere"]):
    """A context that reads images in this process, without limits, for a system on which none divides."""

    at_once = 1
    open = staticmethod(open_instance)

    def __exit__(self, *_: object) -> None:
        pass


def image_reader() -> AbstractContextManager[ImageChildren | ImagesHere]:
    """Return the context that reads images on this machine."""
    return ImageChildren() if FORKS else ImagesHere()


@dataclass
class Opened:
    """An image that the child has open; its identifiers never show in a text."""

    _child: ImageChild = field(repr=False)
    header: Header
    asked: bool = False
    """Whether its pixels were asked for, after which the child closes it."""
    answered: bool = False

    def pixels(self, *, size: int, channels: int) -> Float[Tensor, "channel height width"]:
        """Return the image as `client.dicom.Instance.pixels` does. Refused: its pixels cannot be read."""
        return self.ask(size=size, channels=channels)()

    def ask(self, *, size: int, channels: int) -> Callable[[], Float[Tensor, "channel height width"]]:
        """Have the child read the pixels and return what waits for them; this process is free meanwhile."""
        self.asked = True
        self._child._tell(json.dumps([size, channels]).encode())
        return partial(self._wait, size, channels)

    def _wait(self, size: int, channels: int) -> Float[Tensor, "channel height width"]:
        self.answered = True
        return self._child._pixels(size, channels)


ANSWER, REFUSAL = b"+", b"-"


def _serve(asked: Connection, answers: Connection) -> NoReturn:
    """Answer for one file after the other until the parent is gone."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    torch.set_num_threads(1)  # threads do not come along into a child
    _limit_memory()
    _keep_freed_memory()
    faulthandler.disable()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decoders print what they think of a file
    while True:
        path = _heard(asked)
        _limit_time()
        try:
            with open_instance(os.fsdecode(path)) as instance:
                answers.send_bytes(ANSWER + instance.header.to_json())
                wanted = _heard(asked)
                if wanted:
                    size, channels = json.loads(wanted)
                    answers.send_bytes(
                        ANSWER + instance.pixels(size=size, channels=channels).numpy().tobytes()
                    )
        except Refused as refusal:
            answers.send_bytes(REFUSAL + json.dumps([refusal.reason, refusal.remedy]).encode())


def _heard(asked: Connection) -> bytes:
    """Return what the parent says; without a parent, end."""
    try:
        return asked.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    """Close what the parent has open beyond the standard streams: a file may take the decoder over."""
    gc.freeze()  # what the parent forgot would close numbers that are others' by then
    edges = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for below, above in pairwise(edges):
        os.closerange(below + 1, above)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory holds patients' images
    if sys.platform == "linux":  # elsewhere the system does not tell what a process takes
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))


def _keep_freed_memory() -> None:
    """Let the C library give a frame's memory to the next one: fresh pages cost more than the arithmetic."""
    with suppress(OSError, AttributeError):  # another library than glibc
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, KEPT // 2)
        allocator.mallopt(M_TRIM_THRESHOLD, KEPT)


def _limit_time() -> None:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # counts processor time; at its end the process dies
