"""In process or on Ray, the same ServerApp and ClientApp end in the same bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.serverapp import Grid

from client.site import NodeConfig
from common import weights
from common.config import Config, load
from common.errors import ConfigError
from common.sections import Engine
from server import evaluation
from server.app import common_input_shape, initial_weights, meta_train
from simulation.engines import run, workers_of
from simulation.secrets import make_secrets


def small(over: str = "data.standardise=federation") -> Config:
    """Return a configuration for tables that takes a second."""
    classes = "task.classes=['normal', 'nodule']"
    return load(None, ["model.name=mlp", "model.width=8", "training.rounds=3", classes, over])


def phi_on(engine: Engine, config: Config, parent: Path, out: Path) -> list[torch.Tensor]:
    """Return phi after a meta-training on an engine, in plain and by secure aggregation."""
    folders = sorted(parent.iterdir())
    keys = make_secrets(out / engine.name / "secrets", [one.name for one in folders])

    def program(grid: Grid) -> list[torch.Tensor]:
        sites = evaluation.describe(grid, config).all_of_them()
        initial = weights.pack(initial_weights(config, common_input_shape(sites.values())))
        return [
            meta_train(
                grid, config, "reptile", sites, initial, out / engine.name / name, identities=identities
            ).phi
            for name, identities in (("plain", None), ("summed", keys))
        ]

    places: list[NodeConfig] = [
        {
            "site": one.name,
            "hospital": str(one),
            "device": "cpu",
            "threads": 1,
            "secrets": str(out / engine.name / "secrets" / one.name),
        }
        for one in folders
    ]
    return run(program, places, engine)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
@pytest.mark.parametrize(
    ("config", "hospitals"), [(small(), 3), (small("training.aggregation=median"), 8)], ids=["mean", "groups"]
)
def test_ray_ends_in_the_same_bits(
    table_hospitals: Callable[[int], Path], tmp_path: Path, config: Config, hospitals: int
) -> None:
    """The same seed gives the same phi, bit for bit, whichever engine computes it, masked or not."""
    parent = table_hospitals(hospitals)
    here = phi_on(Engine(name="inprocess", workers=1), config, parent, tmp_path)
    there = phi_on(Engine(name="ray", workers=2), config, parent, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    plain, summed = here
    assert not torch.equal(plain, summed)
    assert torch.allclose(plain, summed, atol=1e-2)  # weights that are rounded draw other batches


def test_without_ray_the_extra_is_named(
    table_hospitals: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install, and what to use instead."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "zamenis\[ray\]", or use --engine inprocess'):
        phi_on(Engine(name="ray", workers=1), small(), table_hospitals(2), tmp_path)


def test_workers_are_as_configured_or_what_the_machine_has() -> None:
    """0 is one per core without CUDA, and at least one."""
    assert workers_of(Engine(workers=3)) == 3
    assert workers_of(Engine(device="cpu")) >= 1


def test_a_failure_of_the_program_reaches_the_caller(
    table_hospitals: Callable[[int], Path], tmp_path: Path
) -> None:
    """An error of ours comes out of an engine as itself, so that the command line can say it."""

    def program(grid: Grid) -> None:
        raise ConfigError("held-out names nobody")

    with pytest.raises(ConfigError, match="held-out names nobody"):
        run(program, [], Engine(workers=1))
