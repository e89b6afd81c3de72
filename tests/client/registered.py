"""A hospital that has registered, and a coordinator that may ask anything of it, by the node's own path."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.home import Home, Keys
from client.node import config_of
from client.policy import guarded
from client.site import opener
from client.worker import answer
from common import wire
from common.config import Config, load
from common.initialise import parameters_of
from tests.client.test_home import SETTINGS

TABLE = (
    "task.classes=['normal', 'nodule']",
    "model.name=linear",
    "training.batch-size=0",
    "experiment.algorithms=['reptile']",
    "experiment.shots=[]",
)


def new_home(folder: Path, policy: str = "") -> Home:
    """Make a node's folder with a new hospital's policy, or the one given."""
    return Home.make(folder, SETTINGS, Keys.make(), ca=b"certificate", peers={}, policy=policy or guarded())


def asked(*over: str) -> Config:
    """Return a run's configuration over the table hospital."""
    return load(None, [*TABLE, *over])


def ask(home: Home, kind: str, config: Config, *, restart: bool = True, **fields: Any) -> Message:
    """Return the reply of the worker of `home`, which has just started, or stands."""
    if restart:
        opener.cache_clear()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    home = Home.load(home.directory)
    instruction = wire.Instruction(config.to_json(), **{"algorithm": "reptile", **fields})
    phi = None
    if kind == wire.TRAIN and not instruction.column_sums:
        shape: tuple[int, ...] = (len(FEATURES),)
        phi = wire.vector(torch.zeros(parameters_of(config, instruction.algorithm, shape)))
    return answer(app, wire.instruct(1, kind, instruction, phi), {**config_of(home), "device": "cpu"})


FEATURES = ("a", "b", "c", "d")


def write_rows(folder: Path, rows: Sequence[Sequence[object]], extra: Sequence[str] = ("finding",)) -> Path:
    """Write a table hospital of these rows: patient, four numbers, then the `extra` columns."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient", *FEATURES, *extra), *rows])
    names = ", ".join(f'"{name}"' for name in FEATURES)
    (folder / "schema.toml").write_text(f'patient = "patient"\nnumeric = [{names}]\n')
    return folder


def delta(reply: Message) -> torch.Tensor:
    """Return what an answered `train` gives."""
    assert not reply.has_error(), reply.error
    array = reply.content.array_records["delta"]["vector"]
    return torch.frombuffer(bytearray(array.data), dtype=torch.float32)
