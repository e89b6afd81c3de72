"""Everything needed to resume exactly, in one safetensors file, written atomically after every round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from common.errors import CheckpointError
from common.files import atomic
from common.weights import read_tensors
from server.outer_loop import OuterState

FORMAT = "zamenis-checkpoint-3"


@dataclass(frozen=True)
class Checkpoint:
    """A meta-training after some round."""

    state: OuterState
    history: Sequence[Mapping[str, Any]]
    """One entry per finished round."""
    statistics: str = ""
    """`common.columns.Statistics` that its sites standardise numeric columns with, as JSON; or empty."""
    run: str = ""
    """Its name for its sites, drawn when it began: what they keep of it, no other training goes on from."""


def save(path: Path, checkpoint: Checkpoint, *, identity: str) -> None:
    """Write `checkpoint`; `identity` names the run it belongs to (configuration, algorithm, sites)."""
    tensors = {"phi": checkpoint.state.phi}
    tensors |= {f"moment/{name}": vector for name, vector in checkpoint.state.moments.items()}
    metadata = {
        "format": FORMAT,
        "zamenis": version("zamenis"),
        "identity": identity,
        "server_round": str(checkpoint.state.server_round),
        "clip": checkpoint.state.clip.hex(),
        "history": json.dumps(list(checkpoint.history)),
        "statistics": checkpoint.statistics,
        "run": checkpoint.run,
    }
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load(path: Path, *, identity: str) -> Checkpoint:
    """Return the checkpoint at `path`; CheckpointError: damaged, or not of this version and run."""
    try:
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged; delete it to train this part again.") from error
    writer, own = metadata.get("zamenis", "an earlier version"), version("zamenis")
    if (metadata.get("format"), writer) != (FORMAT, own):
        raise CheckpointError(
            f"{path}: was written by Zamenis {writer}, and this is {own}. Begin the run anew; or go on with "
            "it under the version that began it, at the coordinator and at every hospital."
        )
    if metadata.get("identity") != identity:
        raise CheckpointError(
            f"{path}: belongs to a run with another configuration, algorithm or other hospitals; "
            "resume with the configuration it was started with, or choose another folder."
        )
    moments = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("moment/")}
    clip = float.fromhex(metadata["clip"])
    state = OuterState(tensors["phi"], int(metadata["server_round"]), moments, clip)
    return Checkpoint(state, json.loads(metadata["history"]), metadata["statistics"], metadata["run"])


def history_at(path: Path) -> list[Mapping[str, Any]]:
    """Return the rounds that the checkpoint at `path` tells of; none where none can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(json.loads((file.metadata() or {})["history"]))
    except (SafetensorError, OSError, KeyError, ValueError):
        return []
