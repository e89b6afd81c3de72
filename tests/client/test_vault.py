"""A site's memory of secure aggregation: races, crashes and endings."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from client.vault import ABANDONED, Vault
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
