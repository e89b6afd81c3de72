"""Whole runs of what hospitals do not share: classes, unseen classes, what a site keeps of its own."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp import Grid
from safetensors.torch import load_file

from client.app import app as client_app
from client.site import NodeConfig
from common import weights
from common.config import Config, load
from common.errors import DataError
from common.initialise import shared_weights
from common.sections import Engine, Phantoms
from server import evaluation
from server.app import common_input_shape, meta_train
from server.checkpoint import Checkpoint
from simulation.engines import run as run_on
from simulation.grid import InProcessGrid
from simulation.phantoms import write_hospitals
from simulation.run import simulate
from tests.conftest import give_key

CLASSES = ("a", "b", "c", "d", "e")
LISTS = (("a", "b", "c"), ("b", "d"), ("c", "d", "e", "a"))
"""What each of three hospitals has."""
SMALL = (
    f"task.classes={json.dumps(CLASSES)}",
    "model.name=mlp",
    "model.width=8",
    "training.rounds=4",
    "training.inner-steps=4",
    "adaptation.folds=1",
    "adaptation.draws=2",
    "adaptation.inner-steps=[5]",
    "experiment.shots=[0, 1, 3]",
    "experiment.draws=3",
    "experiment.replicates=100",
    "experiment.metric=accuracy",
)


class Silent:
    """Tells nothing."""

    def phase(self, name: str, steps: int) -> Any:
        """Return what may be called after each step."""
        return lambda: None


def hospital(folder: Path, classes: Sequence[str], *, seed: int, each: int = 24) -> Path:
    """Write a table of two features, in which each class lies in a direction of its own."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "finding"])
        for name in classes:
            angle = 2 * np.pi * CLASSES.index(name) / len(CLASSES)
            centre = 3 * np.array([np.cos(angle), np.sin(angle)])
            writer.writerows(
                [*(f"{value:.4f}" for value in row), name] for row in centre + chance.normal(size=(each, 2))
            )
    (folder / "schema.toml").write_text('label = "finding"\nnumeric = ["x", "y"]\n')
    give_key(folder, seed)
    return folder


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """Return three hospitals with different lists of classes."""
    for number, classes in enumerate(LISTS, start=1):
        hospital(tmp_path / "in" / f"site-{number}", classes, seed=number)
    return tmp_path / "in"


def ran(
    hospitals: Path, out: Path, algorithms: Sequence[str], *over: str, workers: int = 1
) -> dict[str, Any]:
    """Return the results of a small experiment."""
    keys = (f"data.hospitals={hospitals}", f"experiment.algorithms={json.dumps(algorithms)}")
    config = load(None, [*SMALL, *keys, f"engine.workers={workers}", *over])
    return dict(simulate(config, out, Silent(), command="test"))


def of(found: dict[str, Any], algorithm: str, site: str, shot: int) -> float | None:
    """Return the mean accuracy of a cell, or nothing where it was left out."""
    cells = [
        row["mean"]
        for row in found["rows"]
        if (row["algorithm"], row["site"], row["shot"], row["metric"]) == (algorithm, site, shot, "accuracy")
    ]
    return float(cells[0]) if cells else None


OWN = ("task.own-classes=true", "training.head=home")
EVERYBODY = ("reptile", "maml", "anil", "protonet", "matching", "siamese", "fedavg", "local-only", "pooled")


def test_hospitals_with_different_classes_meta_learn_one_backbone(hospitals: Path, tmp_path: Path) -> None:
    """Each is judged on its own two to four classes by every algorithm; K = 0 has no answer, and says so."""
    found = ran(hospitals, tmp_path / "out", EVERYBODY, *OWN)
    for name in EVERYBODY:
        for site in ("site-1", "site-2", "site-3"):
            assert of(found, name, site, 0) is None
            assert of(found, name, site, 3) is not None
    assert f"{EVERYBODY[0]} has no answer" in json.dumps(found["left_out"])
    assert found["hurt"] == []
    assert of(found, "protonet", "site-2", 3) > 0.7  # type: ignore[operator]
    assert not [name for name in load_file(tmp_path / "out" / "phi.safetensors") if "adapter" in name]


def test_workers_decide_speed_alone_without_a_head_too(hospitals: Path, tmp_path: Path) -> None:
    """One process and two: the same rows and the same weights, to the last bit."""
    algorithms = ("maml", "protonet", "siamese")
    one, two = (ran(hospitals, tmp_path / str(count), algorithms, *OWN, workers=count) for count in (1, 2))
    assert one["rows"] == two["rows"]
    first, second = (load_file(tmp_path / str(count) / "phi.safetensors") for count in (1, 2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unseen_class_is_told_from_known_ones(tmp_path: Path) -> None:
    """A rare finding e that no meta-training saw: three cases of it and three of a known class a do."""
    for number in (1, 2, 3):
        hospital(tmp_path / "in" / f"site-{number}", CLASSES, seed=number)
    unseen = ('experiment.unseen-classes=["e"]', 'experiment.known-classes=["a"]', "training.rounds=8")
    found = ran(tmp_path / "in", tmp_path / "out", ("protonet", "reptile", "fedavg"), *unseen)
    for name in ("protonet", "reptile", "fedavg"):
        assert of(found, name, "site-1", 0) is None
    assert of(found, "protonet", "site-1", 3) > 0.8  # type: ignore[operator]


def test_episodes_of_some_classes(tmp_path: Path) -> None:
    """Two-way one-shot: trained and judged on two of the classes at a time, with a head or without."""
    for number in (1, 2, 3):
        hospital(tmp_path / "in" / f"site-{number}", CLASSES, seed=number)
    way = ("training.way=2", "training.shot=1", "training.query=3", "experiment.way=2", "training.episodes=4")
    found = ran(tmp_path / "in", tmp_path / "out", ("protonet", "maml"), *way)
    assert of(found, "maml", "site-1", 0) is None
    assert of(found, "maml", "site-1", 3) is not None
    assert of(found, "protonet", "site-1", 3) > 0.6  # type: ignore[operator]


def nodes(folders: Sequence[Path]) -> list[NodeConfig]:
    """Return a node per hospital."""
    return [
        {"site": folder.name, "hospital": str(folder), "device": "cpu", "threads": 1} for folder in folders
    ]


KEEPS = {"fedbn": "model.norm=batch", "reptile": "training.inner-optimizer=adam-kept"}
"""Who keeps something at home from round to round, and by which setting."""
keepers = pytest.mark.parametrize("algorithm", KEEPS)


def keeping(algorithm: str) -> Config:
    """Return a configuration that takes seconds."""
    keys = (KEEPS[algorithm], "model.width=4", "data.image-size=16", "training.rounds=4")
    return load(None, [*keys, f'experiment.algorithms=["{algorithm}"]', "training.inner-steps=3"])


def trained(grid: Grid, out: Path, algorithm: str, *, stop_after: int = 99) -> torch.Tensor:
    """Return phi after a meta-training, which fails after so many rounds."""
    config = keeping(algorithm)
    sites = evaluation.describe(grid, config).all_of_them()
    initial = weights.pack(shared_weights(config, algorithm, common_input_shape(sites.values())))

    def on_round(now: Checkpoint) -> None:
        if len(now.history) == stop_after:
            raise DataError("the coordinator's machine fails here")

    return meta_train(grid, config, algorithm, sites, initial, out, on_round).phi


@keepers
def test_what_stays_at_home_survives_an_interruption(tmp_path: Path, algorithm: str) -> None:
    """A run resumed after round 2 ends as one that was never stopped: each site finds its own again."""
    small = Phantoms(sites=2, patients=12, matrix=32)
    folders = write_hospitals(tmp_path / "in", small, seed=0, classes=("normal", "effusion"))
    with InProcessGrid(client_app, nodes(folders), workers=1) as grid:
        with pytest.raises(DataError, match="fails here"):
            trained(grid, tmp_path / "broken", algorithm, stop_after=2)
        resumed = trained(grid, tmp_path / "broken", algorithm)
        kept, before = (
            [load_file(next(folder.rglob(f"round-00000{number}.safetensors"))) for folder in folders]
            for number in (4, 3)
        )
        for folder in folders:
            shutil.rmtree(folder / ".zamenis" / "kept")
        assert torch.equal(resumed, trained(grid, tmp_path / "straight", algorithm))
    for other in (kept[1], before[0]):
        assert any(not torch.equal(value, other[name]) for name, value in kept[0].items())


@keepers
def test_forgetting_what_is_kept_at_home_changes_a_run(tmp_path: Path, algorithm: str) -> None:
    """Rounds do go on from each site's own normalisation, or second moment."""
    folders = write_hospitals(
        tmp_path / "in", Phantoms(sites=2, patients=12, matrix=32), seed=0, classes=("normal", "effusion")
    )
    with InProcessGrid(client_app, nodes(folders), workers=1) as grid:
        with pytest.raises(DataError, match="fails here"):
            trained(grid, tmp_path / "broken", algorithm, stop_after=2)
        shutil.rmtree(folders[0] / ".zamenis" / "kept")
        forgotten = trained(grid, tmp_path / "broken", algorithm)
        shutil.rmtree(folders[1] / ".zamenis" / "kept")
        assert not torch.equal(forgotten, trained(grid, tmp_path / "straight", algorithm))


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
@keepers
def test_ray_ends_in_the_same_bits_with_what_stays_at_home(tmp_path: Path, algorithm: str) -> None:
    """What a site keeps is on its disk, whichever process serves it."""
    small = Phantoms(sites=2, patients=12, matrix=32)
    folders = write_hospitals(tmp_path / "in", small, seed=0, classes=("normal", "effusion"))
    phis = []
    for name in ("inprocess", "ray"):
        engine = Engine.model_validate({"name": name, "workers": 2})
        phis.append(
            run_on(partial(trained, out=tmp_path / name, algorithm=algorithm), nodes(folders), engine)
        )
        for folder in folders:
            shutil.rmtree(folder / ".zamenis" / "kept")
    assert torch.equal(*phis)
