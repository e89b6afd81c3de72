"""From a configuration to a learner with its initial weights: the same on both sides of the wire."""

from __future__ import annotations

import torch

from common import seeds
from common.config import Config
from common.learner import Learner
from common.models import build
from common.tasks import TASKS


def learner_for(config: Config, input_shape: tuple[int, ...], device: torch.device) -> Learner:
    """Return the configured network for cases of `input_shape`, initialised from the run's seed."""
    task = TASKS[config.task.kind]
    classes = config.training.way or len(config.task.classes)
    network = build(config.model, input_shape, task.outputs(classes), seed=seeds.derive(config.seed, "phi"))
    return Learner(network, task, device)
