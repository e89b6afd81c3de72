"""A hospital gives sums over one set of rows, as often as asked, and over no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.dataset import open_hospital
from client.part import Part
from client.policy import guarded
from client.site import Node
from common.config import Config, load
from common.errors import DataError
from tests.conftest import write_table_hospital


def config(*over: str) -> Config:
    """Return a configuration for the table hospital whose columns the federation standardises."""
    settings = ["task.classes=['normal', 'nodule']", "model.name=mlp", "data.standardise=federation"]
    return load(None, [*settings, *over])


def part(folder: Path, asked: Config, *, policy: Path | None) -> Part:
    """Return the hospital's part in what is asked."""
    told = {"site": "site-1", "hospital": str(folder)} | ({"policy": str(policy)} if policy else {})
    return Part(Node.of(told), open_hospital(folder, asked.data, asked.task), asked, "reptile")


@pytest.mark.parametrize(
    "over",
    ["data.adaptation-share=0.6", "training.patients=all", 'task.classes=["normal", "other", "nodule"]'],
)
def test_sums_over_other_rows_are_refused(tmp_path: Path, over: str) -> None:
    """Whatever the coordinator changes; the same question is answered again, and the same."""
    folder = write_table_hospital(tmp_path / "site-1", seed=1)
    policy = tmp_path / "policy.toml"
    policy.write_text(guarded())
    first = part(folder, config(), policy=policy).sum_columns()
    again = part(folder, config("seed=7"), policy=policy).sum_columns()
    assert (first.delta == again.delta).all()
    other = part(folder, config(over), policy=policy)
    if "classes" in over:
        assert (other.sum_columns().delta == first.delta).all()  # the very same rows
    else:
        with pytest.raises(DataError, match="give away the rows that differ"):
            other.sum_columns()


def test_a_simulated_hospital_has_nothing_to_hide(tmp_path: Path) -> None:
    """Without a policy whoever asks has the data."""
    folder = write_table_hospital(tmp_path / "site-1", seed=1)
    for over in ("seed=1", "data.adaptation-share=0.6"):
        part(folder, config(over), policy=None).sum_columns()
