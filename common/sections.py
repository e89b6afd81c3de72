"""The tables of a run's configuration: every key, its type, its bounds and its default, each in one place.

Keys are kebab-case in a file and snake_case here. `common/config` joins the tables into a `Config`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


TaskName = Literal["classification", "multi-label", "regression", "segmentation"]


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

    def to_toml(self) -> str:
        """Return the table complete, with every default, as TOML."""
        return tomli_w.dumps(self.model_dump(by_alias=True, mode="json"))


class Data(Section):
    """Which hospitals, and how a case of theirs becomes a tensor."""

    hospitals: str = ""
    """A folder with one folder per hospital; empty: phantom hospitals are written into the run's folder."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Height and width in pixels that every image is resampled to; aspect kept by padding."""
    channels: Literal[1, 3] = 1
    adaptation_share: Share = 0.5
    """Share of a hospital's patients to learn from; the others are its test patients."""
    standardise: Literal["site", "federation"] = "site"
    """Whose mean and deviation a table's numeric columns are standardised with: each hospital's own, or those
    of all hospitals of a meta-training, from sums over them. Images have no such columns."""


class Phantoms(Section):
    """The synthetic hospitals written when no folder is named (see simulation/phantoms)."""

    sites: Annotated[int, Field(ge=2, le=1000)] = 6
    patients: Annotated[int, Field(ge=4)] = 110
    """Patients per hospital; each has one to three images."""
    matrix: Annotated[int, Field(ge=32, le=4096)] = 128
    """Rows and columns in pixels that a phantom's detector has, before its site's pixel spacing."""


class Task(Section):
    """What is to be predicted."""

    kind: TaskName = "classification"
    label: str = "finding"
    """The label column; in segmentation it names each image's mask; a mere title where multi-label."""
    classes: tuple[str, ...] = Field(
        default_factory=lambda task: () if task.get("kind") == "regression" else ("normal", "effusion")
    )
    """The label's values in order; of two, the second is the positive one. Multi-label: the findings, a
    column with 0 and 1 each. Segmentation: the masks' values, the background first. Regression: none."""
    center: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Regression: a usual number, in the label's unit; what a network puts out is told from here."""
    spread: Rate = 1.0
    """Regression: how far numbers usually lie from there, in the label's unit."""
    own_classes: bool = False
    """Whether each hospital's task is to tell apart those of the classes that it has itself."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What a network's outputs stand for: the classes, or the one number."""
        return self.classes or (self.label,)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold a case's label."""
        return self.classes if self.kind == "multi-label" else (self.label,)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("names a class twice; every class once")
        if self.kind == "regression":
            if self.classes:
                raise ValueError("classes mean nothing to a regression; leave them out")
        elif len(self.classes) < (1 if self.kind == "multi-label" else 2):
            raise ValueError(f"{self.kind} needs classes: name them in order")
        if self.own_classes and self.kind != "classification":
            raise ValueError("own-classes is about classification; leave it out")
        return self


class Model(Section):
    """The network adapter(backbone(x))."""

    name: Literal["conv4", "resnet18", "densenet121", "unet", "mlp", "linear"] = "conv4"
    """Of images: conv4, resnet18, densenet121, and unet, which makes a map; of tables: mlp, linear."""
    width: Count = 32
    """Channels of conv4's convolutions and of unet's first level, hidden units of mlp's layers; the others
    have their own."""
    norm: Literal["group", "batch"] = "group"
    """How a network of images normalises its features."""


class Outer(Section):
    """The coordinator's step on the mean delta (arXiv 1803.02999; Adam and momentum as in 2003.00295)."""

    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    meta_lr: Rate = 1.0
    meta_lr_final: NotNegative = 1.0
    """Approached linearly, round by round; below meta-lr this is Reptile's annealing."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Rate = 1e-3
    """Adam's degree of adaptivity: the constant beside the root of the second moment."""


class Training(Section):
    """One meta-training: what a site does with a message, and what the coordinator does with the replies."""

    rounds: Count = 40
    cohort: Annotated[int, Field(ge=0)] = 0
    """Sites per round; 0: all of them."""
    episodes: Count = 1
    """Episodes per site and round."""
    patients: Literal["adaptation", "all"] = "adaptation"
    """Whom a site trains on: its adaptation patients, or all where its test patients are never tested on."""
    way: Annotated[int, Field(ge=0)] = 0
    """Classes per episode, drawn and re-labelled; 0: the site's task with its own labels."""
    shot: Annotated[int, Field(ge=0)] = 0
    """Patients per class in an episode's support; 0: all whom the site trains on."""
    query: Annotated[int, Field(ge=0)] = 0
    """Patients per class in an episode's query, as far as they exist; 0: as many as the shot."""
    inner_optimizer: Literal["sgd", "adam", "adam-kept"] = "adam"
    """Adam has beta1 = 0 and starts afresh in every inner loop; `adam-kept` has a second moment that stays at
    the site from task to task and from round to round, as in Reptile's published code."""
    inner_lr: Rate = 0.001
    inner_steps: Count = 10
    inner_scope: Literal["all", "adapter"] = "all"
    """What the inner loop moves."""
    batch_size: Annotated[int, Field(ge=0)] = 16
    """Patients per inner step at the least, one image each; 0: the whole support with all images."""
    first_order: bool = False
    """Whether MAML and ANIL take the inner loop's gradients as constants."""
    checkpoint: bool = False
    """Whether MAML computes inner steps again on the way back instead of keeping them: less memory."""
    meta_steps: Count = 1
    """Outer steps that a MAML site takes by itself in a round (Per-FedAvg), its episodes dealt over them."""
    meta_step_lr: Rate = 0.01
    """Learning rate of those steps."""
    proximal: NotNegative = 0.0
    """FedProx's mu: weight of half the squared distance to phi in every inner step."""
    clip_norm: NotNegative = 0.0
    """L2 norm that a site clips its delta to at first, and at most; 0: what the algorithm can reach at all,
    e.g. inner-lr times inner-steps times the root of the number of parameters."""
    clip_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The clip follows twice this quantile of the norms of a round's deltas, by one bit that each site tells
    masked. 0: it stays where it begins."""
    clip_rate: Rate = 0.2
    """How fast it follows, after a quicker beginning (server/clip)."""
    head: Literal["shared", "home"] = "shared"
    """A head with an output per class: part of phi, or at home, beginning at zero in every episode."""
    normalisation: Literal["shared", "local", "recompute"] = "shared"
    """Batch normalisation: scale and shift part of phi and statistics the batch's own; the same with
    statistics of a hospital's own images, estimated once before it adapts (recompute); or that, and
    scale and shift kept at the site as well (local)."""
    weighting: Literal["uniform", "patients"] = "uniform"
    """How a round's deltas are averaged: all alike, or by the patients behind them, at most 8 to 1
    (`common.weighting`)."""
    aggregation: Literal["mean", "median", "trimmed-mean", "multi-krum"] = "mean"
    """All but the mean bear lying sites. Under secure sums, and in simulations of them, median and trimmed
    mean are over fixed groups of hospitals (server/groups); elsewhere over the sites, all weighing alike."""
    byzantine: Annotated[int, Field(ge=0)] = 1
    """Lying sites that groups, a trimmed mean or Multi-Krum bear."""
    outer: Outer = Outer()
    """Reptile's; the others adopt the mean unless [algorithms.NAME.outer] says otherwise."""
    min_cohort: Annotated[int, Field(ge=0)] = 0
    """Replies a round needs: with fewer, phi stays as it was. 0: all; a site that is missing ends the run."""
    round_timeout: Rate = 600.0
    """Seconds to wait for a round's replies."""

    @property
    def remembers(self) -> bool:
        """Whether a site's inner optimiser goes on from task to task."""
        return self.inner_optimizer == "adam-kept"

    @property
    def keeps(self) -> bool:
        """Whether a site keeps something of its own from round to round."""
        return self.normalisation == "local" or self.remembers

    @model_validator(mode="after")
    def _episodes_need_shots(self) -> Self:
        if self.way == 1:
            raise ValueError(
                "way = 1 leaves nothing to tell apart; use 0 (the site's own task) or at least 2"
            )
        if self.episodes % self.meta_steps:
            raise ValueError(
                f"episodes {self.episodes} cannot be dealt evenly over meta-steps {self.meta_steps}; "
                "make it a multiple"
            )
        if self.way and not self.shot:
            raise ValueError("way needs a shot: say how many patients per class an episode's support has")
        return self


class Adaptation(Section):
    """How a hospital adapts phi to its own K cases, and among which recipes the choice is made.

    The choice is made on the meta-training hospitals only, for each K by itself.
    """

    scopes: Annotated[tuple[Literal["adapter", "all", "proximal"], ...], Field(min_length=1)] = ("adapter",)
    """What may move: the adapter, the whole, or the whole with a pull towards phi (`proximal`). A network
    that was never trained (local-only) always moves whole."""
    proximal: Rate = 1.0
    """That pull: weight of half the squared distance to phi in every step."""
    inner_lrs: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.001, 0.01)
    inner_steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 50)
    optimizer: Literal["sgd", "adam"] = "adam"
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Patients per adaptation step at the least, one image each; 0: the whole support with all images."""
    folds: Annotated[int, Field(ge=0)] = 2
    """Meta-training hospitals held out in turn to choose a recipe; 0: the first of each list, unchosen."""
    draws: Count = 10
    """Support draws per recipe and fold while choosing."""
    safeguard: bool = True
    """Fall back towards zero-shot where cross-validation within the support shows no gain."""


class Experiment(Section):
    """Leave one hospital out: which algorithms, which hospitals, which K."""

    algorithms: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "reptile",
        "local-only",
        "fedavg",
        "pooled",
    )
    held_out: tuple[str, ...] = ()
    """Hospitals held out in turn; empty: every one."""
    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 5, 10)
    """The K to adapt with; empty: nothing is held out and judged, only published."""
    unseen_classes: tuple[str, ...] = ()
    """Classes held out of every meta-training; hospitals are judged on them, as far as they have them."""
    known_classes: tuple[str, ...] = ()
    """Classes of the meta-training that a hospital is to tell the unseen ones from, e.g. normal."""
    way: Annotated[int, Field(ge=0)] = 0
    """Classes that each draw's task has, drawn from those a hospital is judged on; 0: all of them."""
    draws: Count = 20
    replicates: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap replicates behind every 95 % interval."""
    metric: str = ""
    """The headline metric, by which recipes are chosen too; empty: AUROC, MAE or Dice as the task asks."""
    timeout: Rate = 3600.0
    """Seconds that a hospital has for one question: reading its data, or adapting and judging."""
    publish: bool = True
    """Finish with a meta-training over every hospital, saved as phi.safetensors."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, values in (
            ("algorithms", self.algorithms),
            ("shots", self.shots),
            ("held-out", self.held_out),
            ("unseen-classes and known-classes", self.unseen_classes + self.known_classes),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice; every one once")
        if self.known_classes and not self.unseen_classes:
            raise ValueError("known-classes are what unseen-classes are told from; name those as well")
        if self.way == 1:
            raise ValueError("way = 1 leaves nothing to tell apart; use 0 (all classes) or at least 2")
        return self


class SecureAggregation(Section):
    """Whether the coordinator sees each site's update, or only the sum of a round (see docs/security.md)."""

    where: Literal["network", "everywhere", "nowhere"] = "network"
    """Over a network; in simulations too; or nowhere, which each hospital's policy has to allow."""
    bits: Annotated[int, Field(ge=8, le=24)] = 16
    """Bits to which a coordinate is rounded, at random up or down."""


class Engine(Section):
    """Where a run's computing happens; decides speed, never results."""

    name: Literal["inprocess", "ray"] = "inprocess"
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes with one thread each; 0: one per processor core (one with CUDA)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
