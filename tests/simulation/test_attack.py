"""What a curious coordinator gets: everything from a plain delta, nothing from a masked vector."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.dataset import open_hospital
from common import weights
from common.bounds import layout_of
from common.cases import Cases
from common.config import Config, load
from common.errors import ConfigError, SecAggError
from common.initialise import learner_for
from common.sections import Phantoms
from simulation import cli
from simulation.attack import run as attack_run
from simulation.attack.cohort import hold
from simulation.attack.inversion import Prior, Puzzle, invert
from simulation.attack.likeness import liken
from simulation.attack.membership import Leak, infer
from simulation.attack.run import attack
from simulation.attack.settings import Settings
from simulation.phantoms import write_hospitals

TINY = Settings(victims=2, sights=8, batch=2, iterations=80, directions=40, replicates=100)
SMALL = (
    "data.image-size=32",
    "model.width=16",
    "training.rounds=2",
    "training.inner-steps=4",
    "engine.workers=1",
)


class Quiet:
    """Progress that is shown to nobody."""

    def phase(self, name: str, steps: int) -> Any:
        """Begin a phase."""
        return lambda: None


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three phantom hospitals' parent folder."""
    parent = tmp_path_factory.mktemp("hospitals")
    write_hospitals(
        parent,
        Phantoms(sites=3, patients=40, matrix=48),
        seed=0,
        classes=("normal", "effusion"),
        progress=lambda done, total: None,
    )
    return parent


def configured(hospitals: Path, *over: str) -> Config:
    """Return a small configuration on these hospitals."""
    return load(cli.DEMO, [f"data.hospitals={hospitals}", *SMALL, *over])


@pytest.fixture(scope="module")
def out(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an attack run through the command line, smaller than its defaults."""
    folder = tmp_path_factory.mktemp("attack")
    sets = [part for key in (f"data.hospitals={hospitals}", *SMALL) for part in ("--set", key)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_run, "Settings", lambda: TINY)
        patch.setattr(sys, "argv", ["zamenis-simulate", "attack", "--out", str(folder), *sets])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    """Return attack.json."""
    told: dict[str, Any] = json.loads((out / "attack.json").read_text())
    return told


def test_a_plain_delta_gives_an_image_away_and_a_masked_vector_does_not(found: dict[str, Any]) -> None:
    """Plain is clearly better than a guess from nothing; masked is no better than that guess."""
    views = found["reconstruction"]["views"]
    assert views["plain"]["psnr"] > views["baseline"]["psnr"] + 3
    assert views["plain"]["ssim"] > views["baseline"]["ssim"] + 0.15
    assert views["masked"]["psnr"] < views["baseline"]["psnr"] + 2  # masks come from the operating system
    assert views["masked"]["ssim"] < views["baseline"]["ssim"] + 0.05
    assert views["sum"]["psnr"] < views["plain"]["psnr"] - 2


def test_every_setting_is_told_and_the_first_is_the_most_favourable(found: dict[str, Any]) -> None:
    """Seven settings over two victims, one row per training image."""
    rows = found["reconstruction"]["settings"]
    assert [(row["images"], row["optimizer"], row["steps"], row["sights"]) for row in rows] == [
        (1, "sgd", 1, 8),
        (1, "sgd", 1, 1),
        (2, "sgd", 1, 8),
        (1, "sgd", 4, 8),
        (1, "adam", 1, 8),
        (1, "adam", 4, 8),
        (2, "adam", 4, 8),
    ]
    assert [len(row["each"]) for row in rows] == [2 * row["images"] for row in rows]
    assert max(rows, key=lambda row: float(row["psnr"])) == rows[0]


def test_membership_is_told_of_all_that_a_coordinator_holds(found: dict[str, Any]) -> None:
    """Weights alone have no delta to align with; every interval holds its figure's place in [0, 1]."""
    leaks = {(one["view"], one["score"]): one for one in found["membership"]}
    deltas = {(view, score) for view in ("plain", "masked", "sum") for score in ("loss", "alignment")}
    assert leaks.keys() == {("phi", "loss"), *deltas}
    assert all(0 <= one["low"] <= one["high"] <= 1 for one in leaks.values())


def test_the_page_needs_nothing_but_itself(out: Path) -> None:
    """Pictures are within it, and nothing is fetched."""
    page = (out / "attack.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 2 * 5
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"@import|<script", page)


def test_figures_repeat_but_for_those_from_masks(
    found: dict[str, Any], hospitals: Path, tmp_path: Path
) -> None:
    """The seed decides everything; masks come from the operating system."""
    again = attack(configured(hospitals), tmp_path, Quiet(), command="", settings=TINY)
    views = [one["reconstruction"]["views"] for one in (found, again)]
    for view in ("plain", "sum", "baseline"):
        assert views[0][view] == views[1][view]
    assert views[0]["masked"] != views[1]["masked"]
    assert found["reconstruction"]["settings"] == again["reconstruction"]["settings"]
    kept = [[leak for leak in one["membership"] if leak["view"] != "masked"] for one in (found, again)]
    assert kept[0] == kept[1]


def test_the_sum_is_the_mean_and_a_masked_vector_tells_nothing_of_its_delta() -> None:
    """The mean holds within its bound; masks leave no correlation (six standard errors of none)."""
    config = load(None, ["training.inner-steps=1"])
    training = config.training_of("reptile")
    chance = torch.Generator().manual_seed(1)
    deltas = {f"site-{n}": 3e-4 * torch.randn(5000, generator=chance) for n in range(4)}
    sight = hold(config, training, torch.zeros(5000), deltas, "test")
    layout = layout_of(training, config.secure_aggregation.bits, 5000, 4)
    plain = torch.stack(list(deltas.values())).clamp(-layout.coordinate_range, layout.coordinate_range)
    assert (sight.mean - plain.mean(0)).abs().max() <= layout.error_bound(4, 4) + 1e-9
    for site, delta in deltas.items():
        together = torch.corrcoef(torch.stack([delta, sight.masked[site]]))[0, 1]
        assert abs(together) < 6 / 5000**0.5


def test_a_cohort_of_two_is_refused_by_its_own_sites() -> None:
    """A sum of two is no protection, and the sites' policy says so."""
    config = load(None)
    deltas = {name: torch.zeros(10) for name in ("a", "b")}
    with pytest.raises(SecAggError, match="honest"):
        hold(config, config.training_of("reptile"), torch.zeros(10), deltas, "test")


def test_likeness_knows_equal_images_and_ignores_brightness_and_contrast() -> None:
    """SSIM 1 for the image itself under another gain; PSNR as its formula says for a known error."""
    chance = torch.Generator().manual_seed(0)
    image = torch.rand(1, 16, 16, generator=chance)
    others = torch.stack([torch.rand(1, 16, 16, generator=chance), 3 * image + 7])
    same = liken(image, others)
    assert same.match == 1
    assert same.ssim > 0.9999
    assert same.psnr > 60
    # A checkerboard of 0 and 1 standardises to -1 and 1, and its negative is 2 off everywhere:
    # peak 2, mean square error 4, so 10 log10(4 / 4) = 0 dB.
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * torch.ones(1, 16, 16)
    assert abs(liken(board, 1 - board[None]).psnr) < 1e-3


def test_one_step_on_one_image_is_inverted_within_the_prior(hospitals: Path) -> None:
    """An image that the prior can express comes back from its gradients better than 25 dB."""
    config = configured(hospitals)
    hospital = open_hospital(hospitals / "site-1", config.data, config.task)
    prior = Prior.of(hospital.test.inputs, 12)
    codes = torch.randn(1, len(prior.directions), generator=torch.Generator().manual_seed(3))
    image, labels = prior.images(codes), torch.tensor([1])
    learners = [learner_for(load(None, [f"seed={n}"]), (1, 32, 32), torch.device("cpu")) for n in range(4)]
    phis = [learner.weights() for learner in learners]
    deltas = []
    for learner in learners:
        loss = learner.task.loss(learner.network(image), labels)
        gradients = torch.autograd.grad(loss, list(learner.network.parameters()))
        deltas.append(weights.pack({str(n): -gradient for n, gradient in enumerate(gradients)}))
    (back,) = invert(learners[0], phis, [Puzzle(labels, deltas)], prior, iterations=80)
    assert liken(image[0], back).psnr > 25


def test_weights_that_memorised_tell_members_from_others(hospitals: Path) -> None:
    """A delta that gets every member right and every other patient wrong tells them apart without an error.

    Between two classes a patient's loss is below ln 2 where the network is right and above where it is wrong,
    so every member scores above every other patient: the AUROC is 1, whatever a processor rounds.
    """
    config = configured(hospitals)
    hospital = open_hospital(hospitals / "site-1", config.data, config.task)
    learner = learner_for(config, (1, 32, 32), torch.device("cpu"))
    phi = weights.pack(learner.weights())
    labels = torch.randint(0, 2, (8,), generator=torch.Generator().manual_seed(0))  # only memory can tell
    members = Cases(hospital.adaptation.at(torch.arange(8)).inputs, labels, torch.arange(8))
    optimizer = torch.optim.Adam(learner.network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        learner.task.loss(learner.network(members.inputs), members.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal((learner.network(members.inputs)[:, 0] > 0).long(), labels)
    inputs = hospital.test.at(torch.arange(8)).inputs
    others = Cases(inputs, (learner.network(inputs)[:, 0] <= 0).long(), torch.arange(8) + 8)
    delta = weights.pack(learner.weights()) - phi
    small = replace(hospital, adaptation=members, test=others)
    training = config.training_of("reptile").model_copy(update={"inner_steps": 60, "inner_lr": 0.01})
    quiet = {name: torch.zeros_like(delta) for name in ("b", "c")}
    sight = hold(config, training, phi, {hospital.name: delta, **quiet}, "test")
    leaks = {(one.view, one.score): one for one in infer(learner, sight, [small], seed=0, replicates=100)}
    assert leaks["plain", "loss"].auroc == leaks["plain", "loss"].low == 1
    assert leaks["phi", "loss"].auroc < 1
    assert isinstance(leaks["masked", "loss"], Leak)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("model.name=mlp", "model.name"),
        ("model.norm=batch", "model.norm"),
        ('experiment.algorithms=["local-only"]', "federated algorithm"),
    ],
)
def test_what_cannot_be_attacked_is_refused(hospitals: Path, tmp_path: Path, over: str, words: str) -> None:
    """One error that names the key, before anything is written."""
    with pytest.raises(ConfigError, match=words):
        attack(configured(hospitals, over), tmp_path / "out", Quiet(), command="", settings=TINY)
    assert not (tmp_path / "out").exists()


def test_two_hospitals_are_too_few(hospitals: Path, tmp_path: Path) -> None:
    """A sum needs three."""
    parent = tmp_path / "two"
    parent.mkdir()
    for name in ("site-1", "site-2"):
        (parent / name).symlink_to(hospitals / name)
    with pytest.raises(ConfigError, match="3 or more"):
        attack(configured(parent), tmp_path / "out", Quiet(), command="", settings=TINY)
