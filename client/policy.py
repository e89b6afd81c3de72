"""What a hospital lets a coordinator ask of it: policy.toml, read anew for every message.

A simulated hospital has no such file and allows `EVERYTHING`; a hospital's node does not start without one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from common import wire
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError, PolicyError
from common.models import BACKBONES
from common.sections import Count, Section
from common.settings import validate
from common.tasks import KINDS
from common.weighting import most_weight
from common.wire import Instruction

Kind = Literal["describe", "train", "evaluate"]


class Policy(Section):
    """What is allowed; every bound is inclusive. A key that a file lacks has its strict default."""

    messages: tuple[Kind, ...] = ("describe", "train")
    """Kinds of message that are answered at all."""
    algorithms: tuple[str, ...] = tuple(sorted(name for name, one in ALGORITHMS.items() if not one.pooled))
    tasks: tuple[str, ...] = tuple(KINDS)
    models: tuple[str, ...] = tuple(BACKBONES)
    standardise: tuple[Literal["site", "federation"], ...] = ("site",)
    """Settings of data.standardise; for "federation" sums over numeric columns leave the hospital."""
    secure_aggregation: Literal["required", "optional"] = "required"
    """Whether this hospital's updates leave it only masked."""
    min_cohort: Annotated[int, Field(ge=2)] = 3
    """Honest hospitals that any sum with this one's update must cover."""
    low_threshold: bool = False
    """Whether a slot's threshold may lie below the default for its number of holders."""
    min_patients: Count = 10
    """Distinct patients behind an update, and in every group of rows that is used or not used as a whole."""
    min_step_patients: Count = 8
    """Distinct patients behind a gradient step, in a support and in a query."""
    max_weight_ratio: Count = 8
    """Times that the heaviest hospital of a sum may weigh the lightest."""
    min_count: Count = 10
    """Patients below which a count leaves the hospital as "fewer than" this."""
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1000.0
    """Largest L2 norm to which an update of this hospital's is clipped, whatever the coordinator asks."""
    hold_out: bool = False
    """Whether secure runs may hold hospitals out: they train over cohorts that differ by one hospital."""
    min_difference: Count = 2
    """Hospitals by which the cohorts of two meta-trainings must differ, or be the same; else `allow`."""
    max_trainings: Count = 1000
    """Meta-trainings that this hospital takes part in within 30 days."""
    max_rounds: Count = 1000
    """Rounds of one meta-training, and times that this hospital masks in a run."""
    max_steps: Count = 200_000
    """Gradient steps that one message may ask for: episodes times inner steps, or draws times steps."""
    max_replicates: Count = 10_000
    """Bootstrap replicates behind an interval."""
    max_image_size: Count = 512
    """Pixels; every other size is another copy of all images in this hospital's cache."""
    max_parameters: Count = 50_000_000
    max_message_mib: Count = 256
    max_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Longest computation for one message; longer ones are ended."""
    explain: bool = False
    """Tell the coordinator in full why a message was refused; else only which rule it broke."""


EVERYTHING = Policy(
    messages=("describe", "train", "evaluate"),
    algorithms=tuple(ALGORITHMS),
    standardise=("site", "federation"),
    secure_aggregation="optional",
    min_cohort=2,
    low_threshold=True,
    min_patients=1,
    min_step_patients=1,
    max_weight_ratio=1_000_000,
    min_count=1,
    max_norm=1e30,
    hold_out=True,
    min_difference=1,
    max_trainings=1_000_000_000,
    max_rounds=100_000,
    max_steps=10_000_000,
    max_replicates=1_000_000,
    max_image_size=1024,
    max_parameters=2_000_000_000,
    max_message_mib=2048,
    max_seconds=86_400.0,
    explain=True,
)
"""What a hospital without a policy.toml allows: a simulated one, whose coordinator is its own user."""

OLDER = EVERYTHING.model_copy(update={"standardise": ("site",)})
"""What Zamenis 0.1.0 took where a policy.toml lacked a key."""


MOST_IN_A_LINE = 6
GUARDED = """\
# What this hospital lets a coordinator ask of it. Read anew for every message: no restart is needed.
# What is not allowed here is refused, and the coordinator is told which key refused it.

# Kinds of message: "describe" (patients per class, above a floor), "train" (a masked update), "evaluate"
# (metrics over this hospital's test patients). Add "evaluate" only for a coordinator whom you trust with
# single patients: many questions about few patients give them away.
messages = ["describe", "train"]
algorithms = {algorithms}
tasks = {tasks}
models = {models}
standardise = ["site", "federation"]   # "federation": sums over numeric columns of tables leave as updates do
secure-aggregation = "required"   # "optional": the coordinator may ask for this hospital's own update
min-cohort = 3             # honest hospitals that a sum must cover, this one included
low-threshold = false      # true: sums may open with fewer shares than the default for their size

# How few patients may stand behind what leaves, in distinct patients of this hospital.
min-patients = 10          # behind an update, and in every group of rows
min-step-patients = 8      # behind a gradient step, in a support and in a query
max-weight-ratio = 8       # how many times the heaviest hospital may weigh the lightest
min-count = 10             # counts below it leave as "fewer than 10"
max-norm = 1000.0          # an update is never longer than this, whatever the coordinator asks

# Sums over cohorts that differ by one hospital give that hospital's part away.
hold-out = false           # true: secure runs may hold hospitals out in turn
min-difference = 2         # hospitals by which two meta-trainings must differ; fewer: zamenis-hospital allow
max-trainings = 1000       # meta-trainings within 30 days

max-rounds = 1000          # of one meta-training
max-steps = 200000         # gradient steps in one message
max-replicates = 10000     # bootstrap replicates behind an interval
max-image-size = 512       # pixels; every size asked for is another copy of the images in this node's cache
max-parameters = 50000000
max-message-mib = 256
max-seconds = 3600.0       # for one message
explain = false            # true: refusals tell the coordinator column names and counts as well
"""
"""A new hospital's policy.toml."""


def guarded() -> str:
    """Return the policy that a hospital starts with, as the text of its file."""
    strict = Policy()
    lists = {"algorithms": strict.algorithms, "tasks": strict.tasks, "models": strict.models}
    return GUARDED.format(**{key: _listed(names) for key, names in lists.items()})


def starting() -> Policy:
    """Return the policy that a hospital starts with."""
    return validate(Policy, tomllib.loads(guarded()), "policy.toml")


def _listed(names: Sequence[str]) -> str:
    """Return names as a TOML array, over several lines where it is long."""
    quoted = [f'"{name}"' for name in names]
    if len(quoted) <= MOST_IN_A_LINE:
        return f"[{', '.join(quoted)}]"
    lines = [quoted[at : at + MOST_IN_A_LINE] for at in range(0, len(quoted), MOST_IN_A_LINE)]
    return "[\n" + "".join(f"    {', '.join(line)},\n" for line in lines) + "]"


def policy_of(path: Path | None) -> Policy:
    """Return the policy at `path` as it is now; without a path, everything is allowed."""
    if path is None:
        return EVERYTHING
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path.name}: is missing; nothing is allowed without it. Restore it.") from error
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int, size: int) -> Policy:
    try:
        tree: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}. Mend that line.") from error
    return validate(Policy, dict(tree), path.name)


@dataclass(frozen=True)
class Lacking:
    """A key that a policy.toml lacks and that 0.1.0 took otherwise; values as JSON has them."""

    key: str
    now: Any
    """The strict default, which holds."""
    before: Any


def lacking(path: Path) -> list[Lacking]:
    """Return the keys that the policy at `path` lacks, where 0.1.0 allowed more than now holds."""
    given = policy_of(path).model_fields_set
    now, before = (one.model_dump(mode="json", by_alias=True) for one in (Policy(), OLDER))
    names = {field.alias or name for name, field in Policy.model_fields.items() if name not in given}
    return [Lacking(key, now[key], before[key]) for key in now if key in names and now[key] != before[key]]


def check(policy: Policy, kind: Kind, instruction: Instruction, config: Config, parameters: int) -> None:
    """Raise PolicyError, which names the key, where a message asks for more than is allowed."""
    named = algorithms_of(kind, instruction, config)
    among(policy.messages, [kind], "messages")
    among(policy.algorithms, named, "algorithms")
    among(policy.tasks, [config.task.kind], "tasks")
    among(policy.models, [config.model.name], "models")
    among(policy.standardise, [config.data.standardise], "standardise")
    at_most(policy.max_parameters, parameters, "max-parameters")
    at_most(policy.max_image_size, config.data.image_size, "max-image-size")
    at_most(policy.max_replicates, instruction.replicates, "max-replicates")
    for algorithm in named:
        training = config.training_of(algorithm)
        at_most(policy.max_rounds, max(training.rounds, instruction.server_round), "max-rounds")
        at_most(policy.max_steps, ALGORITHMS[algorithm].steps(training), "max-steps")
        at_most(policy.max_weight_ratio, most_weight(training), "max-weight-ratio")
    if instruction.recipe:
        steps = wire.decode_recipe(instruction.recipe).steps
        at_most(policy.max_steps, instruction.draws * steps, "max-steps")
    if config.experiment.shots and not policy.hold_out and _sums(policy, config):
        raise PolicyError("hold-out")


def _sums(policy: Policy, config: Config) -> bool:
    """Return whether a run's updates leave this hospital in sums alone."""
    return policy.secure_aggregation == "required" or config.secure_aggregation.where != "nowhere"


def algorithms_of(kind: Kind, instruction: Instruction, config: Config) -> list[str]:
    """Return the algorithms that a message is about: a description is about all that a run will use."""
    return list(config.experiment.algorithms) if kind == "describe" else [instruction.algorithm]


def among(allowed: tuple[str, ...], asked: list[str], key: str) -> None:
    """Raise PolicyError, which names the key, where something is asked for that is not allowed."""
    if any(one not in allowed for one in asked):
        raise PolicyError(key)


def at_most(bound: int, asked: int, key: str) -> None:
    """Raise PolicyError, which names the key, where more is asked for than its bound."""
    if asked > bound:
        raise PolicyError(key)
