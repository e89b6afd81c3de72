"""Shared by all tests: shapes in annotations are checked at run time, and small hospitals on disk."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

SHAPED = [
    *(f"common.{name}" for name in ("cases", "columns", "weights", "learner", "inner_loop")),
    *(f"common.{name}" for name in ("models", "tasks")),
    *(f"common.secagg.{name}" for name in ("shamir", "masking", "packing", "quantise", "vector")),
    *("client.adapt", "client.episodes", "server.outer_loop", "server.aggregate"),
]
install_import_hook(SHAPED, "beartype.beartype")
torch.set_num_threads(1)
settings.register_profile("zamenis", deadline=None)  # a timing is a benchmark, never a test
settings.register_profile("first-failure", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("zamenis")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real data, or skip where this machine has none."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not on this machine ({SHARED.name} beside the checkout)")
    return SHARED


def write_table_hospital(folder: Path, *, seed: int, rows: int = 80, shift: float = 0.0) -> Path:
    """Write a hospital of `rows` patients with four features, the first of which tells the class."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    labels = chance.integers(0, 2, rows)
    features = chance.normal(size=(rows, 4)) + shift
    features[:, 0] += 2.0 * labels
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "d", "finding"])
        for values, label in zip(features, labels, strict=True):
            writer.writerow([*(f"{value:.6f}" for value in values), "nodule" if label else "normal"])
    (folder / "schema.toml").write_text('label = "finding"\nnumeric = ["a", "b", "c", "d"]\n')
    give_key(folder, seed)
    return folder


def give_key(folder: Path, seed: int = 0) -> None:
    """Give a hospital a key of a seed's, so that its patients are always split alike."""
    (folder / ".zamenis").mkdir()
    (folder / ".zamenis" / "site.key").write_bytes(bytes([seed % 256]) * 32)


@pytest.fixture
def table_hospitals(tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that writes N table hospitals and gives their parent folder."""

    def write(count: int) -> Path:
        parent = tmp_path / "hospitals"
        for number in range(1, count + 1):
            write_table_hospital(
                parent / f"site-{number}", seed=number, rows=60 + 10 * number, shift=number / 4
            )
        return parent

    return write
