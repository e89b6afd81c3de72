"""A coordinator that means harm, over real TLS: it cannot make a node grow, nor send it elsewhere."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.proto.message_pb2 import Message as Header
from flwr.supercore.task_identity import TaskIdentity

from client.coordinator import Coordinator
from client.fleet import Fleet, UnwantedError
from common import transport, wire
from common.errors import EnrolmentError
from common.object_tree import identifiers
from server.federation import Federation
from tests.enrolling import coordinator

MIB = 2**20
BOMB = 256 * MIB
"""Bytes that a hostile answer has once it is unpacked."""
GROWTH = 96 * MIB
"""Bytes by which a node may grow at most while it refuses a message with a limit of 1 MiB."""
NODE = """
import resource, sys
from cryptography.hazmat.primitives.asymmetric import ec
from client.fleet import Fleet, UnusableError
from common.errors import ZamenisError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
port, ca, times = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])
with Fleet(f"127.0.0.1:{port}", ca, ec.generate_private_key(ec.SECP384R1()), 7) as line:
    before = peak()
    for _ in range(times):
        try:
            line.receive(limit=2**20)
            print("taken")
        except ZamenisError as error:
            print(type(error).__name__, error)
    print(peak() - before)
"""
"""A node that asks for a message so many times, and says how each ended and by how many bytes it grew."""


class Hostile(ThreadingHTTPServer):
    """Answers each of Flower's requests by its last word with (status, headers, body in pieces)."""

    daemon_threads = True
    answers: dict[str, Callable[[], tuple[int, dict[str, str], Iterator[bytes]]]]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that hangs up is what these tests want."""


class _Handler(BaseHTTPRequestHandler):
    server: Hostile
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        heard.append(self.path)
        wanted = self.server.answers.get(self.path.rsplit("/", 1)[-1], lambda: (404, {}, iter(())))
        status, headers, pieces = wanted()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


heard: list[str] = []
"""The paths that were asked for."""


def said(
    *pieces: bytes, status: int = 200, **headers: str
) -> Callable[[], tuple[int, dict[str, str], Iterator[bytes]]]:
    """Return an answer; underscores in a header's name are hyphens."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: (status, told, iter(pieces))


@contextmanager
def hostile(federation: Federation) -> Iterator[Hostile]:
    """Serve as the federation's coordinator, with its own certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(federation.certificate, federation.key)
    heard.clear()
    with Hostile(("127.0.0.1", 0), _Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.answers = {
            "activate-node": said(ActivateNodeResponse(node_id=7).SerializeToString()),
            "deactivate-node": said(),
            "send-node-heartbeat": said(),
            "confirm-message-received": said(ConfirmMessageReceivedResponse().SerializeToString()),
        }
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Return a federation whose certificate the hostile server has."""
    return coordinator(tmp_path / "demo").federation


def node(server: Hostile, federation: Federation, times: int = 1) -> tuple[list[str], int]:
    """Return how each of a node's requests for a message ended, and by how many bytes the node grew."""
    told = subprocess.run(
        [sys.executable, "-c", NODE, str(server.server_port), str(federation.ca), str(times)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return told[:-1], int(told[-1])


def announced(tree: ObjectTree) -> bytes:
    """Return the answer that announces a message with this tree of objects."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = wire.instruct(7, wire.TRAIN, wire.Instruction(config="{}"), seconds=60)
    header: Header = transport.take_apart(message).header
    answer = PullMessagesResponse(messages_list=[header], message_object_trees=[tree])
    content: bytes = answer.SerializeToString()
    return content


def zeros() -> bytes:
    """Return the protobuf of a found object of `BOMB` zeros, gzipped without ever being whole in memory."""
    empty = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
    packer = zlib.compressobj(9, wbits=31)
    length, digits = BOMB, bytearray()
    while length:
        digits.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
    tag = bytes([PullObjectResponse.OBJECT_CONTENT_FIELD_NUMBER << 3 | 2])
    packed = packer.compress(empty + tag + bytes(digits))
    for _ in range(BOMB // MIB):
        packed += packer.compress(bytes(MIB))
    return packed + packer.flush()


def test_a_compressed_answer_is_refused_before_it_is_unpacked(federation: Federation) -> None:
    """A quarter of a MiB over the line, 256 MiB once inflated."""
    bomb = zeros()
    assert len(bomb) < MIB / 2
    with hostile(federation) as server:
        server.answers["pull-messages"] = said(announced(ObjectTree(object_id="0" * 64)))
        server.answers["pull-object"] = said(bomb, Content_Encoding="gzip")
        (told,), growth = node(server, federation)
    assert told.startswith("UnusableError an answer came compressed")
    assert growth < GROWTH


def test_an_answer_without_end_is_cut_off(federation: Federation) -> None:
    """The limit counts while the body comes, whatever its headers say."""

    def endless() -> tuple[int, dict[str, str], Iterator[bytes]]:
        return 200, {}, (bytes(MIB) for _ in range(BOMB // MIB))

    with hostile(federation) as server:
        server.answers["pull-messages"] = endless
        (first,), growth = node(server, federation)
        assert first.startswith("WireError an answer is longer than")
        server.answers["pull-messages"] = said(announced(ObjectTree(object_id="0" * 64)))
        server.answers["pull-object"] = endless
        (second,), more = node(server, federation)
    assert second.startswith("UnusableError an answer is longer than")
    assert max(growth, more) < GROWTH


@pytest.mark.parametrize("shape", ["wide", "deep"])
def test_a_tree_of_too_many_objects_is_refused_before_one_is_asked_for(
    federation: Federation, shape: str
) -> None:
    """Each would be another request."""
    tree = ObjectTree(object_id="0" * 64)
    below = tree
    for number in range(2000 if shape == "wide" else 40):
        child = below.children.add(object_id=f"{number:064}")
        below = below if shape == "wide" else child
    with hostile(federation) as server:
        server.answers["pull-messages"] = said(announced(tree))
        (told,), _ = node(server, federation)
    assert told.startswith("UnusableError a message is of more")
    assert not [path for path in heard if path.endswith("pull-object")]


def piece(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """Return one of Flower's objects with its identifier."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return sha256(content).hexdigest(), content


def test_a_piece_that_stands_many_times_counts_as_often(federation: Federation) -> None:
    """One piece of half a MiB that an array names 512 times: 256 MiB once it is put together."""
    chunk, data = piece("ArrayChunk", [], bytes(MIB // 2))
    body = {"dtype": "float32", "shape": [1], "stype": "x", "arraychunk_ids": [0] * 512}
    array, content = piece("Array", [chunk], json.dumps(body).encode())
    record, named = piece("ArrayRecord", [array], json.dumps({"phi": array}).encode())
    contents = {chunk: data, array: content, record: named}
    tree = ObjectTree(object_id=record)
    tree.children.add(object_id=array).children.add(object_id=chunk)
    with hostile(federation) as server:
        server.answers["pull-messages"] = said(announced(tree))
        order = iter(identifiers(tree))

        def handed() -> tuple[int, dict[str, str], Iterator[bytes]]:
            return 200, {}, iter([found(contents[next(order)])])

        server.answers["pull-object"] = handed
        (told,), growth = node(server, federation)
    assert told == "UnusableError a message is longer than the 1 MiB that are allowed."
    assert growth < GROWTH


def found(data: bytes) -> bytes:
    """Return the answer that hands out an object."""
    answer = PullObjectResponse(object_found=True, object_available=True, object_content=data)
    content: bytes = answer.SerializeToString()
    return content


def test_a_node_keeps_nothing_that_a_coordinator_leaves_with_it(federation: Federation) -> None:
    """A cookie of 50 kB with every answer would add up, and go back with every request."""
    count = iter(range(10**6))

    def cookie() -> tuple[int, dict[str, str], Iterator[bytes]]:
        return 200, {"Set-Cookie": f"c{next(count)}={'x' * 50_000}; Secure"}, iter(())

    with hostile(federation) as server:
        server.answers["pull-messages"] = cookie
        told, _ = node(server, federation, times=8)
    assert told == ["taken"] * 8


def test_a_node_follows_no_redirect(federation: Federation) -> None:
    """Its signed request would reach whomever a coordinator names; enrolment's goes nowhere else either."""
    with hostile(federation) as server:
        elsewhere = f"https://127.0.0.1:{server.server_port}/elsewhere"
        for last in ("pull-messages", "federation"):
            server.answers[last] = said(status=307, Location=elsewhere)
        key = ec.generate_private_key(ec.SECP384R1())
        address = f"127.0.0.1:{server.server_port}"
        with Fleet(address, federation.ca.read_bytes(), key, 7) as line, pytest.raises(UnwantedError):
            line.receive()
        with pytest.raises(EnrolmentError):
            Coordinator("127.0.0.1", server.server_port).greeting()
    assert "/elsewhere" not in heard
    assert any(path.endswith("federation") for path in heard)
