"""Comparing algorithms: the same hospitals, seeds and draws for all, and if wanted the same budget.

The budget is counted in gradient steps: gradients of the loss of one batch, over all sites of a
meta-training that leaves one hospital out. An inner step is one, an outer gradient on a query is one, a
metric-based algorithm's episode is one; what a second-order gradient costs on its way back is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from common.algorithms import ALGORITHMS
from common.config import Config
from server.report.board import TITLES
from simulation.run import hospitals_in


def overrides(algorithms: str) -> list[str]:
    """Return the setting that names the algorithms of a list with commas."""
    names = [name.strip() for name in algorithms.split(",") if name.strip()]
    return [f"experiment.algorithms={str(names).replace(chr(39), chr(34))}"]


def equal_budget(config: Config) -> list[str]:
    """Return the rounds of each algorithm with which it takes as many gradient steps as the first.

    Rounds are whole: the others take at most one round's steps more.
    """
    count = len(hospitals_in(Path(config.data.hospitals))) if config.data.hospitals else config.phantoms.sites
    names = [name for name in config.experiment.algorithms if ALGORITHMS[name].local_update]
    if not names:
        return []
    budget = config.training_of(names[0]).rounds * steps_a_round(config, names[0], count - 1)
    return [
        f"algorithms.{name}.rounds={math.ceil(budget / steps_a_round(config, name, count - 1))}"
        for name in names
    ]


def steps_a_round(config: Config, name: str, others: int) -> int:
    """Return the gradient steps of one round over a cohort of `others`, or of where all data are pooled."""
    training, algorithm = config.training_of(name), ALGORITHMS[name]
    sites = 1 if algorithm.pooled else min(training.cohort or others, others)
    return sites * algorithm.steps(training)


def difference_table(results: dict[str, Any]) -> Table:
    """Return the first algorithm less each other, on average over the held-out hospitals."""
    mine = [row for row in results["mean_differences"] if row["metric"] == results["metric"]]
    others: Sequence[str] = list(dict.fromkeys(row["algorithm"] for row in mine))
    reference = mine[0]["reference"] if mine else ""
    title = TITLES.get(results["metric"], results["metric"])
    table = Table(
        title=f"{title}: {reference} less the others, mean over hospitals",
        caption="paired on draws and test patients; 95 % interval",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("K", justify="right")
    for name in others:
        table.add_column(Text(name), no_wrap=True)
    found = {(row["shot"], row["algorithm"]): row for row in mine}
    for shot in sorted({row["shot"] for row in mine}):
        table.add_row(str(shot), *(_cell(found.get((shot, name))) for name in others))
    return table


def budget_line(results: dict[str, Any]) -> str:
    """Return how many gradient steps each algorithm took without one hospital."""
    told = ", ".join(f"{name} {count:,}" for name, count in results["gradient_steps"].items())
    return f"Gradient steps of a meta-training: {told}." if told else ""


def _cell(row: dict[str, Any] | None) -> Text:
    if row is None:
        return Text("-", style="dim")
    shown = f"{row['mean']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    return Text(shown, style="bold" if row["ci_low"] > 0 or row["ci_high"] < 0 else "")
