"""Reconstructing a hospital's images from what a coordinator holds, in settings more and less favourable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from client.dataset import Hospital
from common import seeds, weights
from common.algorithms import ALGORITHMS
from common.algorithms.algorithm import clipped
from common.cases import Cases, Episode
from common.config import Config
from common.initialise import learner_for
from common.learner import Learner
from common.sections import Training
from common.seeds import Draws
from common.weights import Weights
from simulation.attack.cohort import Sight, Vector, hold
from simulation.attack.inversion import Prior, Puzzle, invert
from simulation.attack.likeness import Images, Likeness, liken, standardise
from simulation.attack.settings import Settings

SGD_LR = 0.01


@dataclass(frozen=True)
class Setting:
    """How a hospital makes its delta, and how many of its deltas the coordinator uses."""

    name: str
    images: int
    optimizer: str
    steps: int
    sights: int

    def training(self, ground: Training) -> Training:
        """Return `ground` with this setting's inner loop over all images at once."""
        changed = {
            "inner_optimizer": self.optimizer,
            "inner_steps": self.steps,
            "batch_size": self.images,
            "inner_lr": SGD_LR if self.optimizer == "sgd" else ground.inner_lr,
        }
        return ground.model_copy(update=changed)


@dataclass(frozen=True)
class Finding:
    """What came of one puzzle: the images, and per original its likeness."""

    site: str
    images: Images
    likeness: tuple[Likeness, ...]


@dataclass(frozen=True)
class Reconstruction:
    """Everything that inversion found: by what the coordinator holds, then by setting."""

    originals: Mapping[str, Images]
    """Each victim's one image in the favourable setting."""
    baseline: Images
    """The prior's mean: what an attacker would guess of anybody."""
    views: Mapping[str, Sequence[Finding]]
    settings: Mapping[Setting, Sequence[Finding]]


def settings_tried(settings: Settings, ground: Training) -> list[Setting]:
    """Return the attack's own setting, and others nearer to how hospitals train."""
    many, steps, all_ = settings.batch, ground.inner_steps, settings.sights
    return [
        Setting("one image, one step", 1, "sgd", 1, all_),
        Setting("one delta alone", 1, "sgd", 1, 1),
        Setting(f"{many} images a step", many, "sgd", 1, all_),
        Setting("more steps", 1, "sgd", steps, all_),
        Setting("Adam", 1, "adam", 1, all_),
        Setting("Adam, more steps", 1, "adam", steps, all_),
        Setting(f"{many} images, Adam, more steps", many, "adam", steps, all_),
    ]


def reconstruct(
    config: Config, algorithm: str, hospitals: Sequence[Hospital], settings: Settings
) -> Reconstruction:
    """Attack every victim from its plain delta, its masked vector and the cohort's sum.

    The attacker knows every label and how many images a delta comes from, and has images of the same
    hospitals' test patients, who are nowhere trained on, as its prior.
    """
    shape = tuple(hospitals[0].adaptation.inputs.shape[1:])
    learner = learner_for(config, shape, torch.device("cpu"))
    phis = _phis(config, shape, settings.sights)
    prior = Prior.of(torch.cat([one.test.inputs for one in hospitals]), settings.directions)
    chosen = {one.name: _some(config, one, settings.batch) for one in hospitals}
    victims = [one.name for one in hospitals[: settings.victims]]
    tried = settings_tried(settings, config.training_of(algorithm))
    first = {name: cases.at(torch.arange(1)) for name, cases in chosen.items()}
    sights = _sights(config, algorithm, learner, phis, first, tried[0])
    everyone = torch.cat([first[name].labels for name in sorted(first)])
    asked: list[tuple[str, str, Puzzle]] = []
    for name in victims:
        own = first[name].labels
        asked.append(("plain", name, Puzzle(own, [sight.plain[name] for sight in sights])))
        asked.append(("masked", name, Puzzle(own, [sight.masked[name] for sight in sights])))
        asked.append(("chance", name, Puzzle(everyone, [sight.masked[name] for sight in sights])))
    asked.append(("sum", "", Puzzle(everyone, [sight.mean for sight in sights])))
    found = invert(learner, phis, [one for *_, one in asked], prior, iterations=settings.iterations)
    views: dict[str, list[Finding]] = {}
    for (view, name, _), images in zip(asked, found, strict=True):
        for site in [name] if name else victims:
            views.setdefault(view, []).append(_judged(site, first[site], images))
    degraded = {tried[0]: views["plain"]} | _degraded(
        config, algorithm, learner, phis, prior, {name: chosen[name] for name in victims}, tried[1:], settings
    )
    return Reconstruction(
        {name: first[name].inputs for name in victims},
        prior.images(torch.zeros(1, len(prior.directions))),
        views,
        degraded,
    )


def _degraded(
    config: Config,
    algorithm: str,
    learner: Learner,
    phis: Sequence[Weights],
    prior: Prior,
    victims: Mapping[str, Cases],
    tried: Sequence[Setting],
    settings: Settings,
) -> dict[Setting, list[Finding]]:
    """Return what comes of plain deltas in each setting."""
    asked = []
    for setting in tried:
        for name, cases in victims.items():
            mine = cases.at(torch.arange(setting.images))
            deltas = [
                _delta(config, algorithm, learner, phi, mine, setting, name) for phi in phis[: setting.sights]
            ]
            asked.append((setting, name, mine, Puzzle(mine.labels, deltas)))
    puzzles = [one for *_, one in asked]
    images = invert(learner, phis, puzzles, prior, iterations=settings.iterations)
    found: dict[Setting, list[Finding]] = {setting: [] for setting in tried}
    for (setting, name, mine, _), guessed in zip(asked, images, strict=True):
        found[setting].append(_judged(name, mine, guessed))
    return found


def _sights(
    config: Config,
    algorithm: str,
    learner: Learner,
    phis: Sequence[Weights],
    cohort: Mapping[str, Cases],
    setting: Setting,
) -> list[Sight]:
    """Return what the coordinator holds after each round, from the protocol itself."""
    training = setting.training(config.training_of(algorithm))
    sights = []
    for place, phi in enumerate(phis):
        deltas = {
            name: _delta(config, algorithm, learner, phi, cases, setting, name)
            for name, cases in cohort.items()
        }
        sights.append(hold(config, training, weights.pack(phi), deltas, f"sight {place}"))
    return sights


def _delta(
    config: Config,
    algorithm: str,
    learner: Learner,
    phi: Weights,
    cases: Cases,
    setting: Setting,
    site: str,
) -> Vector:
    """Return what a hospital sends that has these cases alone."""
    training = setting.training(config.training_of(algorithm))
    draws = Draws.of_seed(config.seed, "attack", "train", site)
    update_of = ALGORITHMS[algorithm].local_update
    assert update_of is not None  # noqa: S101 - only federated algorithms are attacked
    update = update_of(learner, phi, [Episode(cases, cases)], training, draws, {})
    return clipped(weights.pack(update.delta), training)


def _phis(config: Config, shape: tuple[int, ...], count: int) -> list[Weights]:
    """Return the configured network's initial weights under so many seeds, the run's own first."""
    own = [config.seed, *(seeds.derive(config.seed, "attack", "phi", place) for place in range(1, count))]
    return [
        learner_for(config.model_copy(update={"seed": seed}), shape, torch.device("cpu")).weights()
        for seed in own
    ]


def _some(config: Config, hospital: Hospital, count: int) -> Cases:
    """Return so many of a hospital's adaptation images, drawn at random."""
    generator = seeds.generator(config.seed, "attack", "victim", hospital.name)
    return hospital.adaptation.at(torch.randperm(len(hospital.adaptation), generator=generator)[:count])


def _judged(site: str, originals: Cases, images: Images) -> Finding:
    likeness = tuple(liken(original, images) for original in originals.inputs)
    return Finding(site, standardise(images), likeness)
