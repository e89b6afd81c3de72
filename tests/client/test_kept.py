"""What stays at a hospital between rounds: found again at any round, and nobody else's."""

from __future__ import annotations

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
        kept.keep({"scale": torch.full((3,), float(server_round))}, server_round, last=False)
    assert kept.before(2) == {}
    assert kept.before(4)["scale"].tolist() == kept.before(5)["scale"].tolist() == [2.0] * 3
    assert kept.before(6)["scale"].tolist() == [5.0] * 3


def test_runs_keep_apart_whatever_they_are_called(tmp_path: Path) -> None:
    """A name is hashed: it leads nowhere else on the disk."""
    Kept(tmp_path / "state", "../../elsewhere").keep({"scale": torch.ones(1)}, 1, last=False)
    assert Kept(tmp_path / "state", "another").before(2) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_after_the_last_round_only_that_one_is_left(tmp_path: Path) -> None:
    """One file per training stays."""
    kept = Kept(tmp_path, "run")
    for server_round in (1, 2, 3):
        kept.keep({"scale": torch.ones(1)}, server_round, last=server_round == 3)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["round-000003.safetensors"]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    """Never silently begun anew."""
    kept = Kept(tmp_path, "run")
    kept.keep({"scale": torch.ones(1)}, 1, last=False)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"round-000001\.safetensors: .*damaged"):
        kept.before(2)
