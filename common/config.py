"""A run's whole configuration: TOML in, validated once, frozen; kebab-case keys outside.

`load` merges a TOML file and `key=value` overrides; `Config.to_toml` writes the complete
configuration, so that a run's `config.toml` says everything that decided it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from common.models import BACKBONES
from common.sections import (
    Adaptation,
    Data,
    Engine,
    Experiment,
    Model,
    Phantoms,
    Section,
    SecureAggregation,
    Task,
    Training,
)
from common.settings import read_toml, validate
from common.tasks import TaskKind, kind_of

WAITING = {"min_cohort", "round_timeout"}
"""Settings of a training that say how long a round waits, and for how many."""


class Config(Section):
    """Everything that decides a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    phantoms: Phantoms = Phantoms()
    task: Task = Task()
    model: Model = Model()
    training: Training = Training()
    algorithms: dict[str, dict[str, Any]] = Field(default_factory=dict, validate_default=True)
    """Per algorithm, whatever differs from [training]; completed by what makes the algorithm itself."""
    adaptation: Adaptation = Adaptation()
    experiment: Experiment = Experiment()
    secure_aggregation: SecureAggregation = SecureAggregation()
    engine: Engine = Engine()
    _trainings: dict[str, Training] = PrivateAttr(default_factory=dict)

    @field_validator("algorithms")
    @classmethod
    def _complete(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        _refuse_unknown(given)
        return {name: _merge(method.identity, given.get(name, {})) for name, method in ALGORITHMS.items()}

    @model_validator(mode="after")
    def _every_training_is_possible(self) -> Self:
        _refuse_unknown(self.experiment.algorithms)
        ground = self.training.model_dump(by_alias=True)
        for name in ALGORITHMS:
            tree = _merge(ground, self.algorithms[name])
            self._trainings[name] = validate(Training, tree, f"[algorithms.{name}]")
            if words := ALGORITHMS[name].objection(self._trainings[name]):
                raise ConfigError(f"[algorithms.{name}]: {name} {words}; set it so, or leave the keys out.")
        self._check_classes()
        self._check_task()
        for name in self.experiment.algorithms:
            self._check_together(name)
            self._check_groups(name)
        return self

    def _check_classes(self) -> None:
        """Raise ConfigError where classes are held out that are none, or too few are left to train on."""
        unseen = set(self.experiment.unseen_classes)
        for name in (*self.experiment.unseen_classes, *self.experiment.known_classes):
            if name not in self.task.classes:
                raise ConfigError(f"[experiment]: {name} is none of task.classes; name it there as well.")
        if unseen and len(self.task.classes) - len(unseen) < 2:
            raise ConfigError("experiment.unseen-classes leaves fewer than two classes to meta-train on.")
        if self.task.classes and self.experiment.way > len(self.task.classes):
            raise ConfigError(
                f"experiment.way {self.experiment.way} is more classes than the {len(self.task.classes)} of "
                "task.classes; lower it."
            )

    def _check_task(self) -> None:
        """Raise ConfigError where something is asked for that the kind of task does not have."""
        kind, settings = self.kind, self.experiment
        if settings.metric and settings.metric not in kind.titles:
            raise ConfigError(
                f"experiment.metric {settings.metric} is none of {self.task.kind}; it has "
                f"{', '.join(kind.titles)}."
            )
        by_class = {
            "experiment.unseen-classes": settings.unseen_classes,
            "experiment.way": settings.way,
            "training.way": any(self._trainings[name].way for name in settings.algorithms),
        }
        for key, value in by_class.items():
            if value and not kind.by_class:
                raise ConfigError(
                    f"{key} is about classification, and this is {self.task.kind}; leave it out."
                )
        if BACKBONES[self.model.name].maps != kind.maps:
            fitting = " or ".join(name for name, other in BACKBONES.items() if other.maps == kind.maps)
            raise ConfigError(
                f"model.name {self.model.name} does not go with task.kind {self.task.kind}, which asks about "
                f"{'every pixel' if kind.maps else 'the case as a whole'}; use {fitting}."
            )

    def _check_together(self, name: str) -> None:
        """Raise ConfigError where an algorithm that is to run does not go with the task or the network."""
        training, algorithm = self._trainings[name], ALGORITHMS[name]
        by_class = algorithm.local_update is not None and algorithm.adapter is None
        if self.task.own_classes and by_class and training.head == "shared" and not training.way:
            raise ConfigError(
                f"task.own-classes: {name} would share a head over classes that not every hospital has; "
                'set training.head = "home", or draw episodes with training.way.'
            )
        if algorithm.adapter is not None and not self.kind.by_class:
            raise ConfigError(
                f"{name} compares cases by their class, and in {self.task.kind} they have none; use a "
                "gradient-based algorithm, e.g. reptile."
            )
        if self.data.standardise == "federation" and training.aggregation != "mean":
            raise ConfigError(
                f"[algorithms.{name}]: aggregation {training.aggregation} bears lying sites, and sums over "
                'columns do not; set data.standardise = "site".'
            )
        has_batch_norm = BACKBONES[self.model.name].images and self.model.norm == "batch"
        if training.normalisation != "shared" and not has_batch_norm:
            raise ConfigError(
                f"[algorithms.{name}]: normalisation {training.normalisation} is about batch normalisation, "
                'and this network has none; set model.norm = "batch", and model.name to a network of images.'
            )

    def _check_groups(self, name: str) -> None:
        """Raise ConfigError where an algorithm's sums cannot be those of fixed groups."""
        training = self._trainings[name]
        if not self.grouped(name):
            return
        if training.aggregation == "multi-krum":
            raise ConfigError(
                f"[algorithms.{name}]: aggregation multi-krum compares single deltas, and secure sums show "
                'none; use "median", or secure-aggregation.where = "nowhere".'
            )
        if training.cohort:
            raise ConfigError(
                f"[algorithms.{name}]: aggregation {training.aggregation} over secure sums takes whole "
                "groups of hospitals in every round; set training.cohort = 0."
            )

    @property
    def kind(self) -> TaskKind:
        """What is to be predicted, as functions."""
        return kind_of(self.task)

    @property
    def metric(self) -> str:
        """The headline metric."""
        return self.experiment.metric or self.kind.headline

    def training_of(self, algorithm: str) -> Training:
        """Return [training] with the algorithm's own differences."""
        return self._trainings[algorithm]

    def grouped(self, algorithm: str) -> bool:
        """Whether lying sites are borne by groups, each summed by itself: also where no sum is masked yet."""
        robust = self.training_of(algorithm).aggregation != "mean"
        return robust and not ALGORITHMS[algorithm].pooled and self.secure_aggregation.where != "nowhere"

    def decisive(self, algorithm: str) -> str:
        """Return all that decides a meta-training, as text; where it runs and how it is judged do not.

        Nor do how long a round waits and for how many: they decide who is in it, and not what anybody sends.
        """
        tables = {
            "seed": self.seed,
            "data": self.data.model_dump(mode="json", exclude={"hospitals"}),
            "task": self.task.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "training": self.training_of(algorithm).model_dump(mode="json", exclude=WAITING),
            "algorithm": algorithm,
            "grouped": self.grouped(algorithm),
            "bits": self.secure_aggregation.bits,
            "unseen-classes": self.experiment.unseen_classes,
        }
        return json.dumps(tables, sort_keys=True)

    def to_json(self) -> str:
        """Return the canonical text that travels in messages and is hashed: complete, keys sorted."""
        return json.dumps(self.model_dump(by_alias=True, mode="json"), sort_keys=True)


def load(path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Return the validated configuration of `path` with `key.subkey=value` overrides on top.

    Without `path` every key has its default. Raises ConfigError, which names the file or override,
    the key, the rule and the remedy.
    """
    tree = {} if path is None else read_toml(path)
    for override in overrides:
        tree = _merge(tree, _override(override))
    return validate(Config, tree, str(path) if path else "configuration")


@lru_cache(maxsize=32)
def from_json(text: str) -> Config:
    """Return the configuration that `Config.to_json` wrote; remembered, since every message carries it."""
    return validate(Config, json.loads(text), "message")


def _refuse_unknown(names: Iterable[str]) -> None:
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(f"{name} is not a known algorithm; known: {', '.join(ALGORITHMS)}")


def _override(text: str) -> dict[str, Any]:
    """Return `a.b=value` as a tree; the value is TOML, or a plain word."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {text}: must read key=value or section.key=value, e.g. training.rounds=50.")
    try:
        leaf = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        leaf = value.strip()
    for name in reversed(names):
        leaf = {name: leaf}
    return dict(leaf)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged
