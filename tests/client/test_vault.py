"""A site's memory of secure aggregation: races, crashes and endings."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from client.vault import ABANDONED, Vault, _name
from common.errors import SecAggError
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.numbers import Policy
from common.secagg.site import Member
from common.secagg.state import SiteRun

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def member() -> Member:
    """Return a site that knows itself alone."""
    identity = Identity.make()
    return Member("st-anna", identity, Roster({"st-anna": Peer(identity.public, True)}), Policy())


def advance(state: SiteRun) -> tuple[SiteRun, int]:
    """Take the next slot."""
    return replace(state, highest=state.highest + 1), state.highest + 1


def test_changes_that_race_meet_one_after_the_other(tmp_path: Path, member: Member) -> None:
    """Twenty threads take a slot each; no slot is taken twice."""
    vault, taken = Vault(tmp_path / "vault.db"), list[int]()
    threads = [
        threading.Thread(target=lambda: taken.append(vault.change("run", member, advance))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 21))


def test_a_refused_transition_changes_nothing(tmp_path: Path, member: Member) -> None:
    """The row is what it was, and the next transition works."""
    vault = Vault(tmp_path / "vault.db")

    def refuse(state: SiteRun) -> tuple[SiteRun, int]:
        raise SecAggError("slot-used", "st-anna", "no")

    assert vault.change("run", member, advance) == 1
    with pytest.raises(SecAggError):
        vault.change("run", member, refuse)
    assert vault.change("run", member, advance) == 2


def test_a_finished_run_is_refused_for_ever_and_has_no_secret_left(tmp_path: Path, member: Member) -> None:
    """Its key is nowhere in the file; finishing twice, or a run that never was, is no harm."""
    path = tmp_path / "vault.db"
    vault = Vault(path)
    key = vault.change("run", member, lambda state: (state, state.c))
    assert key in path.read_bytes()
    vault.finish("run")
    vault.finish("run")
    vault.finish("never")
    assert key not in b"".join(one.read_bytes() for one in tmp_path.iterdir())
    with pytest.raises(SecAggError, match="finished"):
        vault.change("run", member, advance)


def test_runs_that_were_abandoned_are_finished(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month after the last message the secrets go; younger runs stay."""
    vault = Vault(tmp_path / "vault.db")
    vault.change("old", member, advance)
    vault.tidy()
    assert vault.change("old", member, advance) == 2
    now = os.stat(tmp_path).st_mtime
    monkeypatch.setattr("time.time", lambda: now + ABANDONED + 60)
    vault.change("new", member, advance)
    vault.tidy()
    assert vault.change("new", member, advance) == 2
    with pytest.raises(SecAggError, match="finished"):
        vault.change("old", member, advance)


KILLED = """
import os, signal, sys
from pathlib import Path
from client.vault import Vault
from tests.client.test_vault import advance
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.numbers import Policy
from common.secagg.site import Member
identity = Identity.make()
member = Member("st-anna", identity, Roster({"st-anna": Peer(identity.public, True)}), Policy())
vault = Vault(Path(sys.argv[1]))
print(vault.change("run", member, advance), flush=True)
vault.change("run", member, lambda state: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_was_answered_is_on_disk_when_the_process_is_killed(tmp_path: Path, member: Member) -> None:
    """Killed in the middle of its second transition: the first stands, the second never was."""
    path = tmp_path / "vault.db"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "1\n"
    assert done.returncode == -9
    assert Vault(path).change("run", member, advance) == 2
    assert path.stat().st_mode & 0o777 == 0o600


def key_of(vault: Vault, member: Member) -> tuple[bytes, int]:
    """Return a run's sealing key and its highest slot."""
    return vault.change("run", member, lambda state: (state, (state.c, state.highest)))


@pytest.mark.parametrize("way", ["copied", "restored"])
def test_a_copy_or_a_restored_backup_gets_new_keys_once(
    tmp_path: Path, member: Member, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its open slots are given up and its key is new; from then on it is a vault like any other."""
    path = tmp_path / "vault.db"
    vault = Vault(path)
    vault.change("run", member, advance)
    vault.change("done", member, advance)
    vault.finish("done")
    before = key_of(vault, member)
    assert key_of(Vault(path), member) == before
    other = tmp_path / "backup.db"
    shutil.copy2(path, other)
    if way == "restored":
        vault.change("run", member, advance)
        os.replace(other, path)
        other = path
    with pytest.raises(SecAggError):  # found by a transition that is refused: it stands all the same
        Vault(other).change("done", member, advance)
    after = key_of(Vault(other), member)
    assert before[0] != after[0]
    assert after[1] == 1
    assert key_of(Vault(other), member) == after
    assert [record.getMessage() for record in caplog.records] == [
        "vault.db is a copy or a restored backup: new keys for 1 runs"
    ]
    with pytest.raises(SecAggError, match="finished"):
        Vault(other).change("done", member, advance)


def test_a_vault_that_was_moved_is_the_same(tmp_path: Path, member: Member) -> None:
    """A file under another name, on the same disk, is the same file."""
    before = key_of(Vault(tmp_path / "vault.db"), member)
    (tmp_path / "vault.db").rename(tmp_path / "moved.db")
    assert key_of(Vault(tmp_path / "moved.db"), member) == before


def test_an_operator_gives_all_runs_new_keys(tmp_path: Path, member: Member) -> None:
    """After a snapshot of the whole machine, which brings back the same file."""
    vault = Vault(tmp_path / "vault.db")
    before = key_of(vault, member)
    vault.finish("done")
    vault.change("another", member, advance)
    assert vault.rejoin() == 2
    assert key_of(vault, member)[0] != before[0]


def test_what_another_version_wrote_is_finished(tmp_path: Path, member: Member) -> None:
    """A vault of 0.1.0, which knew of no file, and whose open slots this version cannot read."""
    path = tmp_path / "vault.db"
    key_of(Vault(path), member)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE file")
        database.execute("UPDATE run SET state = ?", (b"R of another version",))
    with pytest.raises(SecAggError, match="finished"):
        key_of(Vault(path), member)


def test_nobody_else_reads_a_vault(tmp_path: Path, member: Member) -> None:
    """The file is its owner's alone from the start, whatever the process's mask."""

    def look(state: SiteRun) -> tuple[SiteRun, dict[str, int]]:
        with closing(sqlite3.connect(tmp_path / "other.db")) as other:
            other.execute("CREATE TABLE IF NOT EXISTS plain (id)")
        return advance(state)[0], {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}

    mask = os.umask(0)
    try:
        vault = Vault(tmp_path / "vault.db")
        modes = [vault.change("run", member, look) for _ in range(2)]
    finally:
        os.umask(mask)
    for told in modes:
        assert told.pop("other.db") & 0o077  # what SQLite would make of it
        assert set(told.values()) == {0o600}


def test_a_vault_makes_its_folders(tmp_path: Path, member: Member) -> None:
    """However deep they lie; a second message finds them."""
    vault = Vault(tmp_path / "one" / "two" / "vault.db")
    assert [vault.change("run", member, advance) for _ in range(2)] == [1, 2]


def test_what_was_finished_long_ago_is_not_written_anew(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where runs are tidied nor where it is finished again: it would count as a run of this month."""
    path = tmp_path / "vault.db"
    vault = Vault(path)
    vault.change("run", member, advance)
    vault.finish("run")

    def row() -> tuple[bytes, float]:
        with closing(sqlite3.connect(path)) as database:
            found: tuple[bytes, float] = database.execute("SELECT state, at FROM run").fetchone()
            return found

    before, now = row(), os.stat(path).st_mtime
    monkeypatch.setattr("time.time", lambda: now + ABANDONED + 60)
    vault.tidy()
    vault.finish("run")
    assert row() == before


def test_a_file_of_the_same_number_on_another_disk_is_another() -> None:
    """A file system numbers its own files alone."""
    one, other = (os.stat_result((0o600, 7, device, 1, 0, 0, 0, 0, 0, 0)) for device in (1, 2))
    assert _name(one) != _name(other)
