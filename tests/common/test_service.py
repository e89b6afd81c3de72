"""Background processes: one of a name, found and ended whatever happened, never mistaken for another."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import ServiceError
from common.service import hold, start, status, stop, systemd_unit

ROOT = Path(__file__).resolve().parents[2]
SERVICE = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from common.service import hold
folder, name, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print("hello from", name, flush=True)
if mode == "fails":
    sys.exit("no such thing")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with hold(folder, name):
    if mode == "forks" and os.fork() == 0:
        os.write(int(sys.argv[4]), b"%d" % os.getpid())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    while True:
        signal.pause()
"""


def command(folder: Path, mode: str = "plain", *more: str) -> list[str]:
    """Return the command line of a small service named `node`."""
    return [sys.executable, "-B", "-c", SERVICE, str(folder), "node", mode, *more]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which nothing runs afterwards."""
    yield tmp_path
    stop(tmp_path, "node", 0)


def test_start_status_stop(folder: Path) -> None:
    """It runs in a session of its own, writes to its own private log, and is gone when stop returns."""
    assert status(folder, "node") is None
    assert not stop(folder, "node")
    pid = start(command(folder), folder=folder, name="node")
    assert status(folder, "node") == pid
    assert os.getsid(pid) == pid
    log = folder / "logs" / "node.log"
    assert log.read_text() == "hello from node\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stop(folder, "node", 30)
    assert status(folder, "node") is None
    assert os.waitpid(pid, 0)[1] == 0
    assert not (folder / "node.pid").exists()


def test_a_second_one_is_refused(folder: Path) -> None:
    """By whoever would start it, and by itself; another name is another matter."""
    pid = start(command(folder), folder=folder, name="node")
    with pytest.raises(ServiceError, match=f"runs already, as process {pid}"):
        start(command(folder), folder=folder, name="node")
    with pytest.raises(ServiceError, match=f"runs already, as process {pid}"), hold(folder, "node"):
        pytest.fail("two hold one name")
    with hold(folder, "other"):
        assert status(folder, "other") == os.getpid()
        assert status(folder, "node") == pid


def test_one_that_ends_at_once_is_told(folder: Path) -> None:
    """With its code and where its log is; so is a program that is not there."""
    with pytest.raises(ServiceError, match=r"node ended at once \(code 1\)\. See .*node\.log"):
        start(command(folder, "fails"), folder=folder, name="node")
    assert "no such thing" in (folder / "logs" / "node.log").read_text()
    with pytest.raises(ServiceError, match="no-such-program: there is no such program"):
        start(["no-such-program"], folder=folder, name="node")
    (folder / "logs" / "other.log").mkdir()
    with pytest.raises(ServiceError, match=r"other cannot be started, with its log in .*Is a directory"):
        start(command(folder), folder=folder, name="other")


def test_a_stubborn_one_is_ended_by_force(folder: Path) -> None:
    """After the patience that was given."""
    pid = start(command(folder, "stubborn"), folder=folder, name="node")
    assert stop(folder, "node", 0.2)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert status(folder, "node") is None


def test_a_stale_file_is_no_process(folder: Path) -> None:
    """A service that was killed leaves its file; this process's own number in it means nothing either."""
    pid = start(command(folder), folder=folder, name="node")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / "node.pid").read_text() == f"{pid}\n"
    assert status(folder, "node") is None
    (folder / "node.pid").write_text(f"{os.getpid()}\n")
    assert status(folder, "node") is None
    assert not stop(folder, "node")
    again = start(command(folder), folder=folder, name="node")
    assert status(folder, "node") == again


def test_a_child_does_not_keep_a_dead_service_alive(folder: Path) -> None:
    """A fork that outlives its service holds no lock: another service may start."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with closing(os.fdopen(reading, "rb")) as line:
        pid = start(command(folder, "forks", str(writing)), folder=folder, name="node")
        child = int(os.read(line.fileno(), 32))
        os.close(writing)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            assert status(folder, "node") is None
            again = start(command(folder), folder=folder, name="node")
            assert status(folder, "node") == again
        finally:
            os.kill(child, signal.SIGKILL)  # it lives


def test_two_starts_at_once(folder: Path) -> None:
    """One of many processes that want the name has it."""
    wanting = [
        subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    deadline = time.monotonic() + 60
    while sum(one.poll() is not None for one in wanting) < 3:
        assert time.monotonic() < deadline, "more than one holds the name"
        time.sleep(0.01)
    running = status(folder, "node")
    assert [one.pid for one in wanting if one.poll() is None] == [running]
    stop(folder, "node", 30)
    errors = [one.communicate()[1] for one in wanting]
    assert sum(f"runs already, as process {running}" in error for error in errors) == 3


def test_a_hold_ends(tmp_path: Path) -> None:
    """With its context, also by an exception."""
    with pytest.raises(KeyError), hold(tmp_path, "node"):
        raise KeyError
    assert status(tmp_path, "node") is None
    assert list(tmp_path.iterdir()) == []


def test_a_unit_is_what_systemd_takes(tmp_path: Path) -> None:
    """Spaces, percent and dollar signs stay what they are; only the folders named may be written to."""
    folder = tmp_path / "a folder 100%"
    folder.mkdir()
    text = systemd_unit("Node of 100%", [sys.executable, "a b", "$HOME"], folder, [tmp_path / "b"])
    assert f'ExecStart="{sys.executable}" "a b" "$$HOME"\n' in text
    assert f'ReadWritePaths="-{tmp_path}/a folder 100%%" "-{tmp_path}/b"\n' in text
    assert "Description=Node of 100%%\n" in text
    assert f"User={folder.owner()}\n" in text
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "Restart=on-failure"):
        assert f"{line}\n" in text
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = tmp_path / "zamenis-node.service"
    unit.write_text(text)
    checked = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
