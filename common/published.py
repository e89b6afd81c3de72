"""phi.safetensors: an initialisation with all that is needed to use it.

| metadata | what it is |
|---|---|
| `format` | `FORMAT` |
| `config` | the run's configuration as JSON: task and classes, network, image size and channels |
| `algorithm` | which of the run's algorithms made it |
| `input-shape` | the shape of a case, e.g. `[1, 64, 64]` or `[13]` |
| `pipeline` | number of the way from a DICOM file to a tensor (docs/data.md); for images |
| `features` | columns in their order, categories, bits, codes for "not measured"; for tables |
| `statistics` | mean and deviation by numeric column, where the federation standardised them |
| `recipes` | by K the adaptation that the run chose at the hospitals that it held out; null: none helped |

The tensors are the weights by parameter name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common import heads
from common.columns import Statistics
from common.config import Config, from_json
from common.errors import ConfigError, DataError, ZamenisError
from common.features import Features
from common.files import atomic
from common.initialise import learner_of_algorithm
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.weights import Weights, read_tensors

FORMAT = "zamenis-phi-2"
PIPELINE = 1
"""Raised whenever the way from a DICOM file to its tensor changes."""


@dataclass(frozen=True)
class Published:
    """Phi and what it is for."""

    phi: Weights
    config: Config
    algorithm: str
    input_shape: tuple[int, ...]
    features: Features | None = None
    """What a table's features are; None: cases are images."""
    statistics: Statistics | None = None
    """What numeric columns are standardised with; None: with the hospital's own mean and deviation."""
    recipes: Mapping[int, InnerLoop | None] = field(default_factory=dict)
    """How to adapt with K cases a class, where that was tried; None: not at all."""

    def save(self, path: Path) -> None:
        """Write the file at `path`, atomically."""
        metadata = {
            "format": FORMAT,
            "config": self.config.to_json(),
            "algorithm": self.algorithm,
            "input-shape": json.dumps(self.input_shape),
            "recipes": json.dumps({shot: one and asdict(one) for shot, one in sorted(self.recipes.items())}),
        }
        if self.features:
            metadata["features"] = json.dumps(asdict(self.features))
        else:
            metadata["pipeline"] = str(PIPELINE)
        if self.statistics:
            metadata["statistics"] = self.statistics.to_json()
        with atomic(path) as temporary:
            save_file(self.phi, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Published:
        """Return what `save` wrote. DataError: it is damaged, or of another version."""
        try:
            phi, told = read_tensors(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: cannot be read as safetensors. Export phi again.") from error
        if told.get("format") != FORMAT or told.get("pipeline", str(PIPELINE)) != str(PIPELINE):
            raise DataError(f"{path}: is of another version of Zamenis. Use that one, or train phi again.")
        try:
            recipes = json.loads(told["recipes"])
            return cls(
                phi,
                from_json(told["config"]),
                told["algorithm"],
                tuple(int(size) for size in json.loads(told["input-shape"])),
                Features.of(json.loads(told["features"])) if "features" in told else None,
                Statistics.from_json(told["statistics"]) if "statistics" in told else None,
                {int(shot): one and InnerLoop(**one) for shot, one in recipes.items()},
            )
        except (KeyError, ValueError, TypeError, AttributeError, ZamenisError) as error:
            raise DataError(f"{path}: its metadata are damaged. Export phi again.") from error

    def learner(self, device: torch.device | None = None) -> Learner:
        """Return the network that phi is for."""
        return learner_of_algorithm(
            self.config, self.algorithm, self.input_shape, device or torch.device("cpu")
        )

    def predict(self, inputs: Float[Tensor, "case *feature"]) -> Tensor:
        """Return what phi, not adapted, says of cases: probabilities `[case, class]`, or what the task asks.

        ConfigError: it has no answer before it is adapted.
        """
        if not heads.predicts_unadapted(self.config, self.algorithm):
            raise ConfigError(f"{self.algorithm} has no answer without labelled cases; adapt phi first.")
        learner = self.learner()
        return learner.task.predictions(learner.logits(learner.initial | self.phi, inputs))
