"""A process that computes for a coordinator reaches nothing: one tries everything, as root and as a user."""

from __future__ import annotations

import ctypes
import fcntl
import json
import multiprocessing
import os
import pty
import socket
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import landlock, reach, seccomp
from client.confine import Walls, confine
from client.home import Home, Keys, NodeSettings, Registered
from client.node import config_of
from common.errors import ConfigError

NOBODY = 65534
AF_UNIX = int(socket.AF_UNIX)
MAP_FIXED_ANONYMOUS = 0x100022
"""Of mmap(2): a private piece of memory at this very address, and nowhere else."""
USERS = [pytest.param(0, id="root"), pytest.param(NOBODY, id="user")]
LIBC = ctypes.CDLL(None, use_errno=True)
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or landlock.version(LIBC) < landlock.NEEDED,
    reason="this kernel has not all three walls",
)


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> int:
    """Return the user to be: root, where the tests are, and one without rights; else who they are."""
    if os.geteuid() != 0 and request.param == 0:
        pytest.skip("takes root")
    return int(request.param) if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Yield a folder that every user may pass; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve()
        path.chmod(0o755)
        yield path


@pytest.fixture
def home(tmp_path: Path, user: int) -> Home:
    """Return a node whose data lie around it, owned by `user`, beside another node."""
    archive = tmp_path / "archive"
    settings = NodeSettings(
        site="st-anna",
        federation="demo",
        host="localhost",
        port=1,
        node_id=1,
        data=(
            Registered(
                folder=str(archive),
                state=str(archive / "node" / "state" / "data" / "a"),
                label="x",
                classes=("a", "b"),
            ),
        ),
    )
    archive.mkdir()
    for node in ("node", "other"):
        where = (archive if node == "node" else tmp_path) / node
        Home.make(where, settings, Keys.make(), ca=b"x", peers={}, policy="messages = []\n")
    (archive / "table.csv").write_text("id,x\n")
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text("linked")
    (archive / "deep").mkdir()
    (archive / "deep" / "linked.csv").symlink_to(elsewhere)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)
    return Home.load(archive / "node")


Attempt = Callable[[], Any]


def attempted(user: int, read: list[Path], write: list[Path], attempts: dict[str, Attempt]) -> dict[str, str]:
    """Return how each attempt of a confined process of `user` ended: "done", or its error's name."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        told: dict[str, str] = {}
        torch.set_num_threads(1)  # threads that another test has started do not come along
        try:
            if os.geteuid() != user:
                os.setgroups([])
                os.setresuid(user, user, user)
            walls = confine(read, write)
            told["walls"] = walls.missing or "all"
            told["network"] = os.readlink("/proc/self/ns/net")
            for name, attempt in attempts.items():
                try:
                    attempt()
                    told[name] = "done"
                except OSError as error:
                    told[name] = type(error).__name__
        finally:
            os.write(theirs, json.dumps(told).encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        found: dict[str, str] = json.loads(answer.read())
    os.waitpid(child, 0)
    return found


def reachable(home: Home) -> tuple[list[Path], list[Path]]:
    """Return what the node's worker may read and write."""
    mine = reach.reach_of(home, config_of(home), home.logs / "worker.log")
    written = mine.writable()
    for path in (*written, *home.state.rglob("*")):
        os.chown(path, home.state.stat().st_uid, -1)
    return mine.readable(), written


@pytest.fixture
def listening(tmp_path: Path, user: int) -> Iterator[dict[str, Any]]:
    """Yield addresses of sockets that somebody serves, which this user could connect to."""
    served = {
        "ip": socket.create_server(("127.0.0.1", 0)),
        "path": socket.socket(socket.AF_UNIX),
        "datagram": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    served["path"].bind(str(tmp_path / "stream.sock"))
    served["datagram"].bind(str(tmp_path / "datagram.sock"))
    served["abstract"].bind(f"\0zamenis-test-{os.getpid()}")
    for name in ("stream.sock", "datagram.sock"):
        (tmp_path / name).chmod(0o777)
    for name in ("path", "abstract"):
        served[name].listen()
    yield {name: one.getsockname() for name, one in served.items()}
    for one in served.values():
        one.close()


def connect(family: int, address: Any) -> None:
    """Connect and say a word."""
    with socket.socket(family) as line:
        line.connect(address)
        line.sendall(b"x")


def by_a_pair(address: str, send: Callable[[socket.socket, str], Any]) -> None:
    """Send a datagram to an address out of a pair of sockets, which are made without an address."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with mine, theirs:
        send(mine, address)


def by_a_low_address(name: str) -> None:
    """Send a datagram to an address that lies in memory where the lower half of its pointer is zero."""
    low, written = 1 << 32, AF_UNIX.to_bytes(2, sys.byteorder) + name.encode()
    memory = (ctypes.c_void_p(low), ctypes.c_size_t(4096), 3, MAP_FIXED_ANONYMOUS, -1, ctypes.c_long(0))
    LIBC.mmap(*memory)
    ctypes.memmove(low, written, len(written))
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with mine, theirs:
        if LIBC.sendto(mine.fileno(), b"x", 1, 0, ctypes.c_void_p(low), len(written)) < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def test_it_reaches_no_network_and_no_other_program(
    home: Home, user: int, listening: dict[str, Any], tmp_path: Path
) -> None:
    """By IP, by a path, by an abstract name, out of a pair; neither does it start or look into a program."""
    parent = os.getpid()
    ways: dict[str, Attempt] = {
        "ip": lambda: connect(socket.AF_INET, listening["ip"]),
        "path": lambda: connect(socket.AF_UNIX, listening["path"]),
        "abstract": lambda: connect(socket.AF_UNIX, listening["abstract"]),
        "pair": lambda: by_a_pair(listening["datagram"], lambda pair, to: pair.connect(to)),
        "sendto": lambda: by_a_pair(listening["datagram"], lambda pair, to: pair.sendto(b"x", to)),
        "sendmsg": lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendmsg(
            [b"x"], [], 0, "datagram.sock"
        ),
        "low address": lambda: by_a_low_address(listening["datagram"]),
        "queue": lambda: _call(seccomp.REFUSED["msgget"]),
        "shared memory": lambda: _call(seccomp.REFUSED["shmget"]),
        "named queue": lambda: _call(seccomp.REFUSED["mq_open"]),
        "program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "memory": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "signal": lambda: os.kill(parent, 0),
        "ring": lambda: _call(seccomp.REFUSED["io_uring_setup"]),
    }
    told = attempted(user, *reachable(home), ways)
    assert told.pop("walls") == "all"
    assert told.pop("network") != os.readlink("/proc/self/ns/net")
    assert told == dict.fromkeys(ways, "PermissionError")


def _call(numbers: tuple[int | None, int | None]) -> None:
    """Make a system call that needs nothing to be refused."""
    number = numbers[list(seccomp.AUDIT).index(os.uname().machine)]
    assert number is not None
    if LIBC.syscall(number, 1, None) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def test_it_reads_and_writes_what_is_its_own_and_nothing_else(home: Home, user: int, tmp_path: Path) -> None:
    """Its node's folder lies within its data, and even so its keys and its memory stay closed."""
    archive, other = tmp_path / "archive", tmp_path / "other"
    state = Path(home.settings.data[0].state)
    allowed: dict[str, Attempt] = {
        "data": (archive / "table.csv").read_text,
        "link": (archive / "deep" / "linked.csv").read_text,
        "policy": home.policy.read_text,
        "state": lambda: (state / "cache").write_text("x"),
        "replaced": lambda: (state / "cache").rename(state / "again"),
        "log": lambda: os.close(os.open(home.logs / "worker.log", os.O_WRONLY | os.O_APPEND)),
        "random": lambda: os.close(os.open("/dev/urandom", os.O_RDONLY)),
    }
    forbidden: dict[str, Attempt] = {
        "identity": (home.keys_folder / "identity.key").read_bytes,
        "keys": lambda: list(home.keys_folder.iterdir()),
        "peers": home.peers_file.read_text,
        "settings": home.settings_file.read_text,
        "another node": (other / "policy.toml").read_text,
        "another's keys": (other / "keys" / "node.key").read_bytes,
        "home": lambda: list(home.directory.iterdir()),
        "write the policy": lambda: home.policy.write_text("x"),
        "truncate the policy": lambda: os.truncate(home.policy, 0),
        "replace the policy": lambda: (state / "again").rename(home.policy),
        "open the policy to all": lambda: home.policy.chmod(0o666),
        "write data": lambda: (archive / "table.csv").write_text("x"),
        "delete data": (archive / "table.csv").unlink,
        "a new file": lambda: (home.state / "x").write_text("x"),
        "temporary": lambda: Path("/tmp/zamenis-test").write_text("x"),  # noqa: S108
        "passwords": Path("/etc/group").read_bytes,
    }
    told = attempted(user, *reachable(home), allowed | forbidden)
    assert told.pop("walls") == "all"
    assert {name: told[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert {name for name in forbidden if told[name] == "done"} == set()
    assert home.policy.read_text() == "messages = []\n"


def test_it_types_nothing_into_the_terminal_of_whoever_started_it(home: Home, user: int) -> None:
    """Its worker has the terminal open in which the node was started; a shell runs what is typed there."""
    read, write = reachable(home)
    ours, theirs = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        ways: dict[str, Attempt] = {
            "key": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
            "another key": lambda: fcntl.ioctl(0, termios.TIOCLINUX, b"x"),
            "foreground": lambda: os.tcsetpgrp(0, os.getpgid(0)),
        }
        os.write(theirs, json.dumps(attempted(user, read, write, ways)).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        told = json.loads(answer.read())
    os.waitpid(child, 0)
    os.close(terminal)
    assert (told["key"], told["another key"]) == ("PermissionError", "PermissionError")
    assert told["foreground"] != "done"


def test_it_computes_as_ever(home: Home, user: int, tmp_path: Path) -> None:
    """Memory-mapped arrays, threads, pipes that are open already, pairs of sockets."""
    array = tmp_path / "archive" / "pixels.npy"
    np.save(array, np.ones((256, 256), np.float32))
    array.chmod(0o644)
    reading, writing = os.pipe()

    def mapped() -> None:
        pixels = torch.from_numpy(np.load(array, mmap_mode="c"))
        if (pixels @ pixels).sum() != 256**3:
            raise OSError("another product")

    def threaded() -> None:
        threads = [threading.Thread(target=mapped) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def pair() -> None:
        mine, theirs = multiprocessing.Pipe()
        mine.send_bytes(b"x")
        theirs.recv_bytes()

    work: dict[str, Attempt] = {
        "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "mapped": mapped,
        "threads": threaded,
        "pipe": lambda: os.write(writing, b"x"),
        "pair": pair,
    }
    told = attempted(user, *reachable(home), work)
    assert {name: told[name] for name in work} == dict.fromkeys(work, "done")
    assert os.read(reading, 1) == b"x"


def test_walls_that_are_missing_are_named() -> None:
    """What each wall alone keeps a worker from."""
    assert Walls(namespace=True, calls=True, files=True).missing == ""
    assert Walls(namespace=False, calls=True, files=True).missing == ""
    assert Walls(namespace=True, calls=False, files=True).missing == "other programs' sockets"
    everything = "networks, other programs' sockets, this user's other files"
    assert Walls(namespace=False, calls=False, files=False).missing == everything


def test_a_link_that_a_worker_may_have_made_is_not_followed(home: Home, tmp_path: Path) -> None:
    """Else one that was taken over would find the keys open when the next worker starts."""
    (entry,) = home.settings.data
    state = tmp_path / "archive" / ".zamenis"
    moved = home.with_settings(
        home.settings.model_copy(update={"data": (entry.model_copy(update={"state": str(state)}),)})
    )
    mine = reach.reach_of(moved, config_of(moved), home.logs / "worker.log")
    mine.writable()
    (state / "x").symlink_to(tmp_path / "other" / "keys" / "identity.key")
    linked = [path for path in mine.readable() if path.name in ("elsewhere.csv", "identity.key")]
    assert linked == [tmp_path / "elsewhere.csv"]


def test_a_state_folder_with_the_nodes_secrets_in_it_is_refused(home: Home) -> None:
    """A worker writes to its state folders, and so would hold the vault."""
    (entry,) = home.settings.data
    moved = home.with_settings(
        home.settings.model_copy(update={"data": (entry.model_copy(update={"state": str(home.state)}),)})
    )
    with pytest.raises(ConfigError, match="register its folder with another --state"):
        reach.reach_of(moved, config_of(moved), home.logs / "worker.log")


@pytest.mark.skipif(not Path("/proc/driver/nvidia/version").exists(), reason="this machine has no GPU")
def test_cuda_computes_within_the_walls(tmp_path: Path, user: int) -> None:
    """CUDA starts, multiplies and differentiates in a process that reaches nothing."""
    os.chown(tmp_path, user, -1)
    code = [Path(part) for part in ("/usr", "/lib", "/lib64", "/opt", "/proc", "/sys")]

    def learn() -> None:
        try:
            layer = torch.nn.Linear(32, 32, device="cuda")
            loss = layer(torch.ones(4, 32, device="cuda")).square().sum()
            torch.autograd.backward(loss)
        except RuntimeError as error:
            raise OSError("CUDA does not start") from error

    outcomes = attempted(user, [*code, Path(torch.__file__).parent], [tmp_path], {"learn": learn})
    assert outcomes["walls"] == "all"
    assert outcomes["learn"] == "done"
