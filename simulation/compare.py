"""Comparing algorithms: the same hospitals, seeds and draws for all, and if wanted the same budget.

The budget is counted in gradient steps: gradients of the loss of one batch, over all sites of a
meta-training that leaves one hospital out. An inner step is one, an outer gradient on a query is one, a
metric-based algorithm's episode is one; what a second-order gradient costs on its way back is not counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.algorithms import ALGORITHMS
from common.config import Config
from common.tasks import LOWER_IS_BETTER, TITLES
from common.terminal import listed
from simulation.run import hospitals_in


def overrides(algorithms: str) -> list[str]:
    """Return the setting that names the algorithms of a list with commas."""
    names = listed(algorithms)
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


def difference_table(results: dict[str, Any]) -> Group:
    """Return the first algorithm less each other, on average over the held-out hospitals."""
    mine = [row for row in results["mean_differences"] if row["metric"] == results["metric"]]
    reference = mine[0]["reference"] if mine else ""
    metric, lower = TITLES.get(results["metric"], results["metric"]), results["metric"] in LOWER_IS_BETTER
    better = ", lower is better" if lower else ""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("K", "less", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column == "less" else "right")
    for row in sorted(mine, key=lambda row: (row["shot"], row["algorithm"])):
        low, high = row["ci_low"], row["ci_high"]
        sure = "*" if low > 0 or high < 0 else ""
        shown = (f"{row['mean']:+.3f}{sure}", f"{low:+.3f} to {high:+.3f}")
        table.add_row(str(row["shot"]), Text(row["algorithm"]), *shown)
    title = Text(f"{metric}: {reference} less the others, mean over hospitals{better}", style="italic")
    return Group(title, table, Text("paired on draws and test patients; * certain", style="dim italic"))


def budget_line(results: dict[str, Any]) -> str:
    """Return how many gradient steps each algorithm took without one hospital."""
    told = ", ".join(f"{name} {count:,}" for name, count in results["gradient_steps"].items())
    return f"Gradient steps of a meta-training: {told}." if told else ""
