"""A run's whole configuration: TOML in, validated once, frozen; kebab-case keys outside, snake_case inside.

Every default stands here and nowhere else. `load` merges a TOML file and `key=value` overrides;
`dump` writes the complete configuration, so that a run's `config.toml` says everything that decided it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
S = TypeVar("S", bound="Section")
AlgorithmName = Literal["reptile", "fedavg", "fedprox", "local-only", "pooled"]


class Section(BaseModel):
    """One table of the configuration: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_name=True,
        validate_by_alias=True,
    )


class Data(Section):
    """Which hospitals, and how a case of theirs becomes a tensor."""

    hospitals: str = ""
    """A folder with one folder per hospital; empty: phantom hospitals are written into the run's folder."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Height and width in pixels that every image is resampled to; aspect kept by padding."""
    channels: Literal[1, 3] = 1
    adaptation_share: Share = 0.5
    """Share of a hospital's patients to learn from; the others are its test patients."""


class Phantoms(Section):
    """The synthetic hospitals written when no folder is named (see simulation/phantoms)."""

    sites: Annotated[int, Field(ge=2, le=1000)] = 6
    patients: Annotated[int, Field(ge=4)] = 110
    """Patients per hospital; each has one to three images."""
    matrix: Annotated[int, Field(ge=32, le=4096)] = 128
    """Rows and columns in pixels that a phantom's detector has, before its site's pixel spacing."""


class Task(Section):
    """What is to be predicted."""

    kind: Literal["classification"] = "classification"
    label: str = "finding"
    """The label column."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] = ("normal", "nodule")
    """The label's values in order; of two, the second is the positive one."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("names a class twice; every class once")
        return self


class Model(Section):
    """The network adapter(backbone(x))."""

    name: Literal["conv4", "mlp", "linear"] = "conv4"
    width: Count = 32
    """Channels of every convolution, or hidden units of every layer."""
    norm: Literal["group", "batch"] = "group"


class Outer(Section):
    """The coordinator's step on the mean delta (arXiv 1803.02999; Adam and momentum as in 2003.00295)."""

    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    meta_lr: Rate = 1.0
    meta_lr_final: NotNegative = 1.0
    """Reached linearly in the last round; below meta-lr this is Reptile's annealing."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Rate = 1e-3
    """Adam's degree of adaptivity: the constant beside the root of the second moment."""


class Training(Section):
    """One meta-training: what a site does with a message, and what the coordinator does with the replies."""

    rounds: Count = 30
    cohort: Annotated[int, Field(ge=0)] = 0
    """Sites per round; 0: all of them."""
    episodes: Count = 1
    """Episodes per site and round."""
    way: Annotated[int, Field(ge=0)] = 0
    """Classes per episode, drawn and re-labelled; 0: the site's task with its own labels."""
    shot: Annotated[int, Field(ge=0)] = 0
    """Patients per class in an episode's support; 0: all of the site's adaptation patients."""
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    inner_lr: Rate = 0.05
    inner_steps: Count = 10
    batch_size: Count = 16
    proximal: NotNegative = 0.0
    """FedProx's mu: weight of half the squared distance to phi in every inner step."""
    weighting: Literal["uniform", "examples"] = "uniform"
    """How a round's deltas are averaged."""
    outer: Outer = Outer()
    min_cohort: Count = 1
    """Replies a round needs; with fewer, phi stays as it was."""
    round_timeout: Rate = 600.0
    """Seconds to wait for a round's replies."""

    @model_validator(mode="after")
    def _episodes_need_shots(self) -> Self:
        if self.way == 1:
            raise ValueError("way = 1 leaves nothing to tell apart; use 0 (the site's own task) or at least 2")
        if self.way and not self.shot:
            raise ValueError("way needs a shot: say how many patients per class an episode's support has")
        return self


class Adaptation(Section):
    """How a hospital adapts phi to its own K cases, and among which recipes the choice is made.

    The choice is made on the meta-training hospitals only, for each K by itself.
    """

    scopes: Annotated[tuple[Literal["adapter", "all"], ...], Field(min_length=1)] = ("adapter", "all")
    inner_lrs: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.01, 0.05)
    inner_steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 20)
    optimizer: Literal["sgd", "adam"] = "sgd"
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Cases per adaptation step; 0: the whole support."""
    folds: Annotated[int, Field(ge=0)] = 2
    """Meta-training hospitals held out in turn to choose a recipe; 0: the first of each list, unchosen."""
    draws: Count = 10
    """Support draws per recipe and fold while choosing."""
    safeguard: bool = True
    """Fall back towards zero-shot where cross-validation within the support shows no gain."""


class Experiment(Section):
    """Leave one hospital out: which algorithms, which hospitals, which K."""

    algorithms: Annotated[tuple[AlgorithmName, ...], Field(min_length=1)] = (
        "reptile",
        "local-only",
        "fedavg",
        "pooled",
    )
    held_out: tuple[str, ...] = ()
    """Hospitals held out in turn; empty: every one."""
    shots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 5, 10)
    draws: Count = 20
    replicates: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap replicates behind every 95 % interval."""
    metric: Literal["auroc", "accuracy", "balanced-accuracy"] = "auroc"
    """The headline metric, by which recipes are chosen too."""
    publish: bool = True
    """Finish with a meta-training over every hospital, saved as phi.safetensors."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, values in (("algorithms", self.algorithms), ("shots", self.shots), ("held-out", self.held_out)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice; every one once")
        return self


class Engine(Section):
    """Where a run's computing happens; decides speed, never results."""

    name: Literal["inprocess", "ray"] = "inprocess"
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes with one thread each; 0: one per processor core (one with CUDA)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


IDENTITY: dict[AlgorithmName, dict[str, Any]] = {
    "reptile": {"outer": {"meta-lr": 1.0, "meta-lr-final": 0.0}},
    "fedavg": {"weighting": "examples", "outer": {"optimizer": "sgd", "meta-lr": 1.0, "meta-lr-final": 1.0}},
    "fedprox": {
        "weighting": "examples",
        "proximal": 0.1,
        "outer": {"optimizer": "sgd", "meta-lr": 1.0, "meta-lr-final": 1.0},
    },
    "local-only": {},
    "pooled": {"outer": {"optimizer": "sgd", "meta-lr": 1.0, "meta-lr-final": 1.0}},
}
"""What makes each algorithm itself, over [training]; a file's [algorithms.NAME] goes over this."""


class Config(Section):
    """Everything that decides a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    phantoms: Phantoms = Phantoms()
    task: Task = Task()
    model: Model = Model()
    training: Training = Training()
    algorithms: dict[AlgorithmName, dict[str, Any]] = Field(default_factory=dict, validate_default=True)
    """Per algorithm, whatever differs from [training]."""
    adaptation: Adaptation = Adaptation()
    experiment: Experiment = Experiment()
    engine: Engine = Engine()

    @field_validator("algorithms")
    @classmethod
    def _complete(cls, given: dict[AlgorithmName, dict[str, Any]]) -> dict[AlgorithmName, dict[str, Any]]:
        return {name: _merge(IDENTITY[name], given.get(name, {})) for name in IDENTITY}

    @model_validator(mode="after")
    def _every_training_is_possible(self) -> Self:
        for name in IDENTITY:
            self.training_of(name)
        return self

    def training_of(self, algorithm: AlgorithmName) -> Training:
        """Return [training] with the algorithm's own differences."""
        tree = _merge(self.training.model_dump(by_alias=True), self.algorithms[algorithm])
        return validate(Training, tree, f"[algorithms.{algorithm}]")

    def to_json(self) -> str:
        """Return the canonical text that travels in messages and is hashed: complete, keys sorted."""
        return json.dumps(self.model_dump(by_alias=True, mode="json"), sort_keys=True)

    def to_toml(self) -> str:
        """Return the complete configuration as TOML; `load` reads it back equal."""
        return tomli_w.dumps(self.model_dump(by_alias=True, mode="json"))


def load(path: Path | None = None, overrides: Iterable[str] = (), *, defaults: Mapping[str, Any] | None = None) -> Config:
    """Return the validated configuration of `path` with `key.subkey=value` overrides on top.

    Without `path`, `defaults` (or nothing) stands in for the file. Raises ConfigError, which names
    the file or override, the key, the rule and the remedy.
    """
    tree: dict[str, Any] = _merge({}, defaults or {})
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}. Mend that line.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as text. Name a TOML file that exists.") from error
    for override in overrides:
        tree = _merge(tree, _override(override))
    return validate(Config, tree, str(path) if path else "configuration")


def validate(kind: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Return `tree` as a `kind`; a ConfigError tells every fault by key, rule and remedy."""
    try:
        return kind.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        faults = [_explain(kind, dict(fault)) for fault in error.errors()]
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults)) from None


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


def _explain(kind: type[Section], fault: dict[str, Any]) -> str:
    """Return one of pydantic's faults as `key: rule, remedy`."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path) or "configuration"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
        return f"{key} is not a known key; {hint}"
    if fault["type"] == "literal_error" and path and path[-1] == "[key]":
        return f"{'.'.join(path[:-1])} is not a known algorithm; known: {', '.join(IDENTITY)}."
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    given = fault.get("input")
    shown = f" (it is {json.dumps(given, default=str)})" if isinstance(given, str | int | float | bool) else ""
    return f"{key} {rule}{shown}."


def _known_keys(kind: type[Section], path: list[str]) -> list[str]:
    """Return the keys that the table at `path` below `kind` takes."""
    section: type[Section] = kind
    for part in path:
        field = next((f for f in section.model_fields.values() if f.alias == part), None)
        below = field.annotation if field else None
        if not (isinstance(below, type) and issubclass(below, Section)):
            return []
        section = below
    return [field.alias or name for name, field in section.model_fields.items()]
