"""The attack from a configuration to its folder: attack.json and attack.html."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from client.dataset import Hospital, open_hospital
from client.episodes import episodes
from common import weights
from common.algorithms import ALGORITHMS
from common.algorithms.algorithm import clipped
from common.config import Config
from common.errors import ConfigError, DataError
from common.files import write_text
from common.initialise import learner_for
from server.experiment.conduct import Progress, conduct
from server.experiment.plan import Plan
from server.logs import log_to
from server.outer_loop import Vector
from simulation.attack.cohort import Sight, hold
from simulation.attack.likeness import liken
from simulation.attack.membership import infer
from simulation.attack.page import write_page
from simulation.attack.reconstruct import Finding, Reconstruction, reconstruct
from simulation.attack.settings import Settings
from simulation.engines import run as run_on
from simulation.run import hospital_folders, nodes_of

LEAST_COHORT = 3
"""Hospitals that every hospital's own policy wants in a sum."""


def attack(
    config: Config, out: Path, progress: Progress, *, command: str, settings: Settings | None = None
) -> Mapping[str, Any]:
    """Attack a federation of `config`'s hospitals; leave attack.json and attack.html in `out`."""
    settings = settings or Settings()
    begun = time.monotonic()
    algorithm = _attacked(config)
    config = _trained_on_some(config, algorithm)
    out.mkdir(parents=True, exist_ok=True)
    log_to(out / "run.log")
    folders = hospital_folders(config, out, progress)
    if len(folders) < LEAST_COHORT:
        raise ConfigError(
            f"data.hospitals: {len(folders)} are too few for a sum; an attack needs {LEAST_COHORT} or more."
        )
    phi = run_on(
        partial(_meta_trained, config=config, out=out, progress=progress),
        nodes_of(config, folders, []),
        config.engine,
    )
    hospitals = _opened(config, folders)
    step = progress.phase("Attacking", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = reconstruct(config, algorithm, hospitals, settings)
        step()
        sight = _next_round(config, algorithm, hospitals, phi)
        shape = tuple(hospitals[0].adaptation.inputs.shape[1:])
        learner = learner_for(config, shape, torch.device("cpu"))
        leaks = infer(learner, sight, hospitals, seed=config.seed, replicates=settings.replicates)
        step()
    finally:
        torch.set_num_threads(threads)
    found = {
        "version": version("zamenis"),
        "command": command,
        "seed": config.seed,
        "algorithm": algorithm,
        "model": config.model.name,
        "parameters": len(phi),
        "rounds": config.training_of(algorithm).rounds,
        "hospitals": [
            {"site": one.name, "members": _patients(one)[0], "others": _patients(one)[1]} for one in hospitals
        ],
        "settings": asdict(settings),
        "reconstruction": _told(images),
        "membership": [asdict(leak) for leak in leaks],
        "seconds": round(time.monotonic() - begun, 1),
    }
    write_text(out / "config.toml", config.to_toml())
    write_text(out / "attack.json", json.dumps(found, indent=1, allow_nan=False))
    write_page(found, images, out / "attack.html")
    return found


def _attacked(config: Config) -> str:
    """Return the first federated algorithm; refuse what the attack cannot be run on."""
    if config.model.name != "conv4" or config.model.norm != "group":
        raise ConfigError(
            f"model {config.model.name} with norm {config.model.norm}: the attack reconstructs images from a "
            'conv4 that treats each by itself; use model.name = "conv4" and model.norm = "group".'
        )
    if config.training.way:
        raise ConfigError("training.way: classes re-labelled per episode are not attacked; use 0.")
    algorithm = Plan(config, []).headliner
    if algorithm is None:
        raise ConfigError("experiment.algorithms names no federated algorithm; name reptile, for instance.")
    training = config.training_of(algorithm)
    if ALGORITHMS[algorithm].adapter or training.head != "shared" or training.keeps:
        raise ConfigError(
            f"algorithms.{algorithm}: the attack needs updates of the whole network with one head for all, "
            'and nothing kept at home; name reptile or fedavg first, with head = "shared", normalisation = '
            '"shared" and inner-optimizer = "sgd" or "adam".'
        )
    return algorithm


def _trained_on_some(config: Config, algorithm: str) -> Config:
    """Return the configuration with one meta-training over all hospitals, on their adaptation patients alone.

    Test patients are the non-members, so that nobody may train on them.
    """
    return Config.model_validate(
        config.model_dump()
        | {
            "experiment": config.experiment.model_dump()
            | {"algorithms": (algorithm,), "shots": (), "held_out": (), "publish": True},
            "training": config.training.model_dump() | {"patients": "adaptation"},
            "algorithms": {
                name: own | ({"patients": "adaptation"} if name == algorithm else {})
                for name, own in config.algorithms.items()
            },
        }
    )


def _meta_trained(grid: Any, config: Config, out: Path, progress: Progress) -> Vector:
    """Return phi, meta-trained over every hospital."""
    (trained,) = conduct(grid, config, out, progress).trained.values()
    return trained.phi


def _opened(config: Config, folders: Sequence[Path]) -> list[Hospital]:
    share = config.data.adaptation_share
    hospitals = [open_hospital(folder, config.data, config.task, share=share) for folder in folders]
    for one in hospitals:
        if not (len(one.adaptation) and len(one.test)):
            raise DataError(f"{one.name}: needs patients to train on and others; it has one kind alone.")
    return hospitals


def _next_round(config: Config, algorithm: str, hospitals: Sequence[Hospital], phi: Vector) -> Sight:
    """Return what the coordinator holds after one more round as configured, from phi."""
    training = config.training_of(algorithm)
    shape = tuple(hospitals[0].adaptation.inputs.shape[1:])
    learner = learner_for(config, shape, torch.device("cpu"))
    update_of = ALGORITHMS[algorithm].local_update
    assert update_of is not None  # noqa: S101 - only federated algorithms are attacked
    deltas = {}
    for one in hospitals:
        draws = one.draws.child("attack", config.seed, training.rounds + 1)
        tasks = episodes(
            one.adaptation, config.task.classes, training, draws, halves=ALGORITHMS[algorithm].queries
        )
        update = update_of(learner, weights.unpack(phi, learner.weights()), tasks, training, draws, {})
        deltas[one.name] = clipped(weights.pack(update.delta), training)
    return hold(config, training, phi, deltas, "one more round")


def _patients(hospital: Hospital) -> tuple[int, int]:
    return len(torch.unique(hospital.adaptation.patients)), len(torch.unique(hospital.test.patients))


def _told(images: Reconstruction) -> dict[str, Any]:
    """Return likenesses as numbers: by view, by setting, and of the baseline."""
    guesses = [
        Finding(site, images.baseline, (liken(original[0], images.baseline),))
        for site, original in images.originals.items()
    ]
    return {
        "views": {view: _rows(found) for view, found in ({**images.views, "baseline": guesses}).items()},
        "settings": [asdict(setting) | _rows(found) for setting, found in images.settings.items()],
    }


def _rows(found: Sequence[Finding]) -> dict[str, Any]:
    """Return means over all images, and each image's own."""
    pairs = [(one.site, likeness) for one in found for likeness in one.likeness]
    return {
        "psnr": fmean(likeness.psnr for _, likeness in pairs),
        "ssim": fmean(likeness.ssim for _, likeness in pairs),
        "each": [{"site": site, "psnr": one.psnr, "ssim": one.ssim} for site, one in pairs],
    }
