"""What a hospital lets a coordinator ask of it: policy.toml, read anew for every message.

A simulated hospital has no such file and allows everything; a hospital's node does not start without one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from common import wire
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError, PolicyError
from common.sections import Count, Section
from common.settings import validate
from common.wire import Instruction

Kind = Literal["describe", "train", "evaluate"]


class Policy(Section):
    """What is allowed; every bound is inclusive."""

    messages: tuple[Kind, ...] = ("describe", "train", "evaluate")
    """Kinds of message that are answered at all."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    tasks: tuple[str, ...] = ("classification",)
    models: tuple[str, ...] = ("conv4", "mlp", "linear")
    secure_aggregation: Literal["required", "optional"] = "optional"
    """Whether this hospital's updates leave it only masked."""
    min_cohort: Annotated[int, Field(ge=2)] = 2
    """Honest hospitals that any sum with this one's update must cover."""
    max_rounds: Count = 100_000
    """Rounds of one meta-training."""
    max_steps: Count = 10_000_000
    """Gradient steps that one message may ask for: episodes times inner steps, or draws times steps."""
    max_parameters: Count = 2_000_000_000
    max_message_mib: Count = 2048
    max_seconds: Annotated[float, Field(gt=0)] = 86_400.0
    """Longest computation for one message; longer ones are ended."""
    explain: bool = True
    """Tell the coordinator in full why a message was refused; else only which rule it broke."""


GUARDED = """\
# What this hospital lets a coordinator ask of it. Read anew for every message: no restart is needed.
# What is not allowed here is refused, and the coordinator is told which key refused it.

messages = ["describe", "train", "evaluate"]   # counts; a local update; metrics over test patients
algorithms = {algorithms}
tasks = {tasks}
models = {models}
secure-aggregation = "required"   # "optional": the coordinator may ask for this hospital's own update
min-cohort = 3             # honest hospitals that a sum must cover, this one included
max-rounds = 1000          # of one meta-training
max-steps = 200000         # gradient steps in one message
max-parameters = 50000000
max-message-mib = 256
max-seconds = 3600.0       # for one message
explain = false            # true: refusals tell the coordinator column names and counts as well
"""
"""A new hospital's policy.toml."""


def guarded() -> str:
    """Return the policy that a hospital starts with, as the text of its file."""
    lists = {
        "algorithms": [name for name in sorted(ALGORITHMS) if not ALGORITHMS[name].pooled],
        "tasks": list(Policy().tasks),
        "models": list(Policy().models),
    }
    return GUARDED.format(**{key: str(names).replace("'", '"') for key, names in lists.items()})


def policy_of(path: Path | None) -> Policy:
    """Return the policy at `path` as it is now; without a path, everything is allowed."""
    if path is None:
        return Policy()
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
    return validate(Policy, tree, path.name)


def check(policy: Policy, kind: Kind, instruction: Instruction, config: Config, parameters: int) -> None:
    """Raise PolicyError, which names the key, where a message asks for more than is allowed."""
    named = _algorithms(kind, instruction, config)
    _among(policy.messages, [kind], "messages")
    _among(policy.algorithms, named, "algorithms")
    _among(policy.tasks, [config.task.kind], "tasks")
    _among(policy.models, [config.model.name], "models")
    _at_most(policy.max_parameters, parameters, "max-parameters")
    for algorithm in named:
        training = config.training_of(algorithm)
        _at_most(policy.max_rounds, max(training.rounds, instruction.server_round), "max-rounds")
        _at_most(policy.max_steps, ALGORITHMS[algorithm].steps(training), "max-steps")
    if instruction.recipe:
        steps = wire.decode_recipe(instruction.recipe).steps
        _at_most(policy.max_steps, instruction.draws * steps, "max-steps")


def _algorithms(kind: Kind, instruction: Instruction, config: Config) -> list[str]:
    """Return the algorithms that a message is about: a description is about all that a run will use."""
    return list(config.experiment.algorithms) if kind == "describe" else [instruction.algorithm]


def _among(allowed: tuple[str, ...], asked: list[str], key: str) -> None:
    if any(one not in allowed for one in asked):
        raise PolicyError(key)


def _at_most(bound: int, asked: int, key: str) -> None:
    if asked > bound:
        raise PolicyError(key)
