"""Predictions are kept at a simulated hospital, where it is told to, and are in no message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.home import Home, Keys, NodeSettings
from client.node import config_of
from client.policy import guarded
from client.predictions import file_of, load
from client.worker import answer
from common import wire
from common.config import load as configured
from common.initialise import parameters_of
from common.inner_loop import InnerLoop
from tests.conftest import write_table_hospital


def question(purpose: str, shot: int = 2) -> Message:
    """Return a coordinator's question to a table hospital: three draws of K patients per class."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    config = configured(None, ['task.classes=["normal","nodule"]', "model.name=mlp", "model.width=4"])
    parameters = parameters_of(config, "reptile", (4,))
    phi = wire.vector(0.1 * torch.randn(parameters, generator=torch.Generator().manual_seed(0)))
    instruction = wire.Instruction(
        config.to_json(),
        "reptile",
        shot=shot,
        recipe=wire.encode_recipe(InnerLoop(3, 0.1)),
        draws=3,
        replicates=100,
        purpose=purpose,
    )
    return wire.instruct(1, wire.EVALUATE, instruction, phi)


def said(reply: Message) -> dict[str, bytes]:
    """Return all that a reply carries."""
    arrays = reply.content.array_records
    told = {f"{key}/{name}": array.data for key, record in arrays.items() for name, array in record.items()}
    return told | {key: repr(dict(record)).encode() for key, record in reply.content.config_records.items()}


@pytest.mark.parametrize("shot", [0, 2])
def test_what_is_kept_is_in_no_message(tmp_path: Path, shot: int) -> None:
    """The reply is the same, bit for bit, whether the hospital keeps its predictions or not."""
    hospital = write_table_hospital(tmp_path / "site-1", seed=1, rows=80)
    node: dict[str, str | int | float | bool] = {"site": "site-1", "hospital": str(hospital), "threads": 1}
    kept = tmp_path / "kept"
    plain, keeping = (
        answer(app, question(wire.TEST, shot), {**node, **over}) for over in ({}, {"predictions": str(kept)})
    )
    assert not plain.has_error(), plain.error
    assert said(plain) == said(keeping)
    assert set(said(plain)) == {
        "facts",
        *(
            f"judgement/{kind}/{name}"
            for kind in ("draws", "replicates")
            for name in wire.read_judgement(plain).draws
        ),
    }
    (path,) = (one for one in kept.rglob("*") if one.is_file())
    assert path == file_of(kept, "site-1", "reptile", shot)
    told = load(path)
    draws = 3 if shot else 1
    cases = len(told.labels) // draws
    assert np.array_equal(told.draws, np.repeat(np.arange(draws), cases))
    assert np.array_equal(told.labels, np.tile(told.labels[:cases], draws))
    assert told.predicted.shape == (draws * cases, 2)
    assert told.predicted.sum(1) == pytest.approx(1)
    accuracy = (told.predicted.argmax(1) == told.labels).reshape(draws, cases).mean(1)
    assert accuracy == pytest.approx(wire.read_judgement(plain).draws["accuracy"])


def test_only_what_a_report_shows_is_kept(tmp_path: Path) -> None:
    """Not what recipes are chosen by."""
    hospital = write_table_hospital(tmp_path / "site-1", seed=1, rows=80)
    kept = str(tmp_path / "kept")
    reply = answer(app, question("choose"), {"site": "a", "hospital": str(hospital), "predictions": kept})
    assert not reply.has_error()
    assert not (tmp_path / "kept").exists()


def test_a_deployed_node_keeps_none(tmp_path: Path) -> None:
    """Its configuration is its own, and has no place for them."""
    settings = NodeSettings(site="site-1", federation="demo", host="localhost", port=1, node_id=1)
    home = Home.make(tmp_path / "node", settings, Keys.make(), ca=b"x", peers={}, policy=guarded())
    assert "predictions" not in config_of(home)
