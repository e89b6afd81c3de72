"""What stays at a hospital between rounds: found again at any round, and nobody else's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from client.kept import Kept
from common.errors import DataError


def test_a_round_finds_what_the_last_one_before_it_left(tmp_path: Path) -> None:
    """Also where the hospital sat out rounds, and where a resumed run asks for a round again."""
    kept = Kept(tmp_path, "run")
    assert kept.before(1) == {}
    for server_round in (2, 5):
        kept.keep({"scale": torch.full((3,), float(server_round))}, server_round)
    assert kept.before(2) == {}
    assert kept.before(4)["scale"].tolist() == kept.before(5)["scale"].tolist() == [2.0] * 3
    assert kept.before(6)["scale"].tolist() == [5.0] * 3


def test_runs_keep_apart_whatever_they_are_called(tmp_path: Path) -> None:
    """A name is hashed: it leads nowhere else on the disk."""
    Kept(tmp_path / "state", "../../elsewhere").keep({"scale": torch.ones(1)}, 1)
    assert Kept(tmp_path / "state", "another").before(2) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_two_rounds_are_kept(tmp_path: Path) -> None:
    """A coordinator that fails before its checkpoint asks for the last round again, and for none before."""
    kept = Kept(tmp_path, "run")
    for server_round in (1, 3, 4, 6):
        kept.keep({"scale": torch.full((1,), float(server_round))}, server_round)
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == [
        "round-000004.safetensors",
        "round-000006.safetensors",
    ]
    assert kept.before(6)["scale"].item() == 4.0
    with pytest.raises(DataError, match="before round 4 is gone"):
        kept.before(4)


def test_the_same_run_may_begin_anew(tmp_path: Path) -> None:
    """At its first round it finds nothing, whatever a finished run of that name left; then its own."""
    kept = Kept(tmp_path, "run")
    for server_round in (2, 3, 5):
        kept.keep({"scale": torch.zeros(1)}, server_round)
    assert kept.before(2) == {}
    kept.keep({"scale": torch.ones(1)}, 2)
    assert kept.before(3)["scale"].item() == 1.0


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    """Never silently begun anew."""
    kept = Kept(tmp_path, "run")
    kept.keep({"scale": torch.ones(1)}, 1)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(DataError, match="keeps of a meta-training is damaged"):
        kept.before(2)


def test_a_round_that_blew_up_is_not_kept(tmp_path: Path) -> None:
    """The next one goes on from the last good round; one bad number is enough."""
    kept = Kept(tmp_path, "run")
    kept.keep({"scale": torch.ones(3)}, 1)
    kept.keep({"scale": torch.tensor([1.0, torch.nan, 1.0]), "steps": torch.tensor(5.0)}, 2)
    kept.keep({"scale": torch.ones(3), "moment": torch.tensor([torch.inf])}, 3)
    assert kept.before(4)["scale"].tolist() == [1.0] * 3


@pytest.mark.parametrize("first", [1.0, torch.nan])
def test_who_blew_up_answers_as_others_do(tmp_path: Path, first: float) -> None:
    """Whether a run that is set back is refused says nothing of what a round's numbers were."""
    kept = Kept(tmp_path, "run")
    for server_round, value in ((5, first), (6, 1.0), (7, 1.0)):
        kept.keep({"scale": torch.full((3,), value)}, server_round)
    with pytest.raises(DataError, match="set back"):
        kept.before(6)


def test_what_nobody_has_touched_for_a_month_is_forgotten(tmp_path: Path) -> None:
    """Once some run keeps something; runs of this month stay."""
    for name in ("old", "recent"):
        Kept(tmp_path, name).keep({"scale": torch.ones(1)}, 1)
    old = next(folder for folder in (tmp_path / "kept").iterdir() if folder == Kept(tmp_path, "old")._folder)
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    Kept(tmp_path, "now").keep({"scale": torch.ones(1)}, 1)
    assert Kept(tmp_path, "old").before(2) == {}
    assert Kept(tmp_path, "recent").before(2) != {}
