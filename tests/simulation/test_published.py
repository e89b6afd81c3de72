"""What a run hands out can be used by whoever has the file and cases of their own, and by nobody else."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from client.dataset import Hospital, open_hospital
from client.dicom import read_image
from client.part import standardised
from common.columns import Statistics
from common.config import Config, load
from common.errors import DataError, ZamenisError
from common.features import Features
from common.inner_loop import InnerLoop
from common.published import Published
from common.sections import Phantoms
from server.experiment.plan import Plan
from simulation.phantoms import write_hospitals
from simulation.run import simulate
from tests.conftest import give_key
from tests.simulation.test_run import SMALL
from tests.simulation.test_standardise import Silent

SCHEMA = """
label = "finding"
split = "set"
numeric = ["age", "chol"]
[categorical]
cp = [1, 2, 3]
[missing]
chol = [0]
cp = ["-9"]
"""

BARE = """
import csv, json, sys
import numpy as np, torch
from pathlib import Path
from common.published import Published

phi = Published.load(Path(sys.argv[1]))
rows = list(csv.DictReader(open(sys.argv[2])))
columns, missing = phi.features, {name: set(codes) for name, codes in phi.features.missing}

def measured(row, name):
    cell = str(float(row[name])) if row[name] else ""
    return None if not cell or cell in missing.get(name, ()) else cell

numeric = np.array([[float(measured(row, name) or "nan") for name in columns.numeric] for row in rows])
learned = numeric[[row["set"] == "adaptation" for row in rows]]
mean, std = np.nanmean(learned, 0), np.nanstd(learned, 0, ddof=1)
if phi.statistics:
    mean, std = phi.statistics.mean, phi.statistics.std
numeric = np.nan_to_num((numeric - mean) / std)
indicators = [[measured(row, name) == one for name, of in columns.categorical for one in of] for row in rows]
inputs = np.column_stack([numeric, np.array(indicators, float)]).astype(np.float32)
test = [row["set"] == "test" for row in rows]
print(json.dumps(phi.predict(torch.from_numpy(inputs[test])).tolist()))
"""


def write_table(folder: Path, seed: int, missing: str = "") -> None:
    """Write a hospital with two numeric columns and a categorical one, some of it not measured."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cp", "age", "set", "chol", "finding"])
        for row in range(60):
            sick = int(chance.integers(2))
            age, chol, cp = (
                chance.normal(60 + 9 * sick, 5),
                chance.normal(200, 30),
                int(chance.integers(1, 4)),
            )
            side = "adaptation" if row % 2 else "test"
            shown = (["-9", "1.0", "2", "3"][cp if row % 7 else 0], f"{age:.3f}" if row % 11 else "")
            writer.writerow([*shown, side, f"{chol:.2f}" if row % 5 else 0, ["normal", "nodule"][sick]])
    (folder / "schema.toml").write_text(SCHEMA + missing)
    give_key(folder, seed)


def run(out: Path, *settings: str) -> Config:
    """Run a small experiment."""
    quick = ("task.label=finding", "engine.workers=1", "experiment.algorithms=['reptile']")
    config = load(None, [*SMALL, *quick, *settings])
    simulate(config, out, Silent(), command="test")
    return config


def expected(config: Config, phi: Published, hospital: Hospital) -> list[list[float]]:
    """Return what the node that a message reaches predicts for its test cases."""
    told = standardised(hospital, phi.statistics) if phi.statistics else hospital
    learner = phi.learner()
    logits = learner.logits(learner.initial | phi.phi, told.test.inputs)
    return sorted(config.kind.predictions(logits).tolist())


@pytest.mark.parametrize("standardise", ["site", "federation"])
def test_a_bare_script_with_the_file_predicts_the_same(tmp_path: Path, standardise: str) -> None:
    """The file alone tells columns, order, categories, codes, statistics, network and classes.

    What one hospital alone takes for missing (an age of 999) is not what others should.
    """
    for seed in range(3):
        write_table(tmp_path / "hospitals" / f"site-{seed}", seed, 'age = ["999"]' if seed == 2 else "")
    config = run(
        tmp_path / "run",
        f"data.hospitals={tmp_path / 'hospitals'}",
        f"data.standardise={standardise}",
        "experiment.shots=[]",
    )
    file, site = tmp_path / "run/phi.safetensors", tmp_path / "hospitals/site-1"
    phi = Published.load(file)
    assert phi.features == Features(
        ("age", "chol"),
        (("cp", ("1.0", "2.0", "3.0")),),
        (),
        (("chol", ("0.0",)), ("cp", ("-9.0",))),
    )
    assert (phi.config.task.classes, phi.input_shape) == (("normal", "nodule"), (5,))
    script = subprocess.run(
        [sys.executable, "-c", BARE, str(file), str(site / "table.csv")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    hospital = open_hospital(site, config.data, config.task)
    np.testing.assert_allclose(
        sorted(json.loads(script.stdout)), expected(config, phi, hospital), rtol=1e-5, atol=1e-6
    )


def test_images_are_predicted_by_the_file_and_the_reader(tmp_path: Path) -> None:
    """Size and channels stand in the file; how a DICOM file becomes a tensor is numbered."""
    write_hospitals(tmp_path / "hospitals", Phantoms(sites=3, patients=12, matrix=32), seed=7)
    config = run(
        tmp_path / "run",
        f"data.hospitals={tmp_path / 'hospitals'}",
        "data.image-size=16",
        "model.name=conv4",
        "experiment.shots=[]",
    )
    phi = Published.load(tmp_path / "run/phi.safetensors")
    assert phi.features is None
    folder = next((tmp_path / "hospitals").iterdir())
    hospital = open_hospital(folder, config.data, config.task)
    data = phi.config.data
    read = {
        pixels.numpy().tobytes(): phi.predict(pixels[None])[0]
        for path in folder.rglob("*.dcm")
        for pixels in [read_image(path, size=data.image_size, channels=data.channels).pixels]
    }
    mine = sorted(read[one.numpy().tobytes()].tolist() for one in hospital.test.inputs)
    np.testing.assert_allclose(mine, expected(config, phi, hospital), rtol=1e-5, atol=1e-6)


def test_recipes_are_those_that_the_held_out_hospitals_chose(
    table_hospitals: Callable[[int], Path], tmp_path: Path
) -> None:
    """By K; where nobody was held out none was tried, and none is handed on."""
    hospitals = f"data.hospitals={table_hospitals(3)}"
    config = run(tmp_path / "tried", hospitals, "adaptation.folds=2")
    recipes = Published.load(tmp_path / "tried/phi.safetensors").recipes
    assert set(recipes) == {1, 5}
    assert set(recipes.values()) <= set(Plan(config, []).candidates("reptile"))
    run(tmp_path / "untried", hospitals, "experiment.shots=[]")
    assert not Published.load(tmp_path / "untried/phi.safetensors").recipes


def test_the_file_gives_everything_back(tmp_path: Path) -> None:
    """Every field, to the bit."""
    features = Features(("ä", "b"), (("c", ("x", "1.0")),), (("f", 8),), (("b", ("0.0",)),))
    statistics = Statistics(np.array([1 / 3, 2]), np.array([0.1, 0]))
    recipes = {1: None, 5: InnerLoop(3, 0.1, "adam", 4, 0.5, "adapter")}
    config = load(None, list(SMALL))
    phi = Published({"w": torch.tensor([1 / 3])}, config, "reptile", (12,), features, statistics, recipes)
    phi.save(tmp_path / "phi.safetensors")
    back = Published.load(tmp_path / "phi.safetensors")
    assert torch.equal(back.phi["w"], phi.phi["w"])
    assert (back.config, back.algorithm, back.input_shape) == (config, "reptile", (12,))
    assert (back.features, dict(back.recipes)) == (features, recipes)
    assert back.statistics
    np.testing.assert_array_equal(back.statistics.mean, statistics.mean)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "zamenis-phi-1"}, "another version"),
        ({"pipeline": "99"}, "another version"),
        ({"config": "{"}, "metadata are damaged"),
        ({"recipes": '{"1": 3}'}, "metadata are damaged"),
        ({"input-shape": "null"}, "metadata are damaged"),
    ],
)
def test_a_file_that_is_no_phi_is_one_clear_error(tmp_path: Path, change: dict[str, str], told: str) -> None:
    """Which file, and what to do."""
    path = tmp_path / "phi.safetensors"
    Published({"w": torch.ones(2)}, load(None, list(SMALL)), "reptile", (4,)).save(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path), path, metadata | change)
    with pytest.raises(DataError, match=f"phi.safetensors: .*{told}"):
        Published.load(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ZamenisError, match="cannot be read as safetensors"):
        Published.load(path)
