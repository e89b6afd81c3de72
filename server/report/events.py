"""TensorBoard events, where the extra is installed: loss by round, and every figure by K."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_events(results: Mapping[str, Any], folder: Path) -> bool:
    """Write `results` as TensorBoard events under `folder`; return whether the extra is there to do so."""
    if importlib.util.find_spec("tensorboard") is None:
        return False
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for entry in results["rounds"]:
            if "loss" in entry:
                name = f"loss/{entry['algorithm']} without {entry['site']}"
                writer.add_scalar(name, entry["loss"], entry["round"])
        for row in results["rows"]:
            name = f"{row['metric']} at {row['site']} by shot/{row['algorithm']}"
            writer.add_scalar(name, row["mean"], row["shot"])
    return True
