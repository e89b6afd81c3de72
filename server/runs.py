"""A coordinator's runs: each a folder that says everything of it, and can be gone on with.

`config.toml`, `sites.json` (who took part), `training/` and `answers/` (what is finished), and at the end
`results.json`, `report.html`, `phi.safetensors` and `tensorboard/`, as the simulator writes them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config as configuration
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError, LinkError
from common.files import write_text
from server.entry import Status
from server.experiment.attendance import Roll
from server.experiment.conduct import Outcome, Progress, conduct
from server.experiment.results import results
from server.federation import Federation
from server.link import open_run
from server.logs import Aloud, log_to
from server.report.files import RESULTS, write_results
from server.roster import Roster

logger = logging.getLogger("zamenis.server")
LONGEST_RETRY = 10.0
"""Seconds between two tries to reach a SuperLink that is gone."""
UNMASKED = (
    "Secure aggregation is OFF: this coordinator will see every hospital's own update, from which images of "
    "patients can be reconstructed. Hospitals whose policy requires it take no part."
)
HOLDS_OUT = (
    "This run holds hospitals out in turn: it trains over cohorts that differ by one hospital, and the "
    "difference of two sums is that one's own update. Hospitals whose policy does not say hold-out = true "
    "take no part. experiment.shots = [] trains over all of them and publishes phi."
)
CONFIG = "config.toml"


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def config(self) -> Config:
        """What the run was started with."""
        return configuration.load(self.folder / CONFIG)

    @property
    def finished(self) -> bool:
        """Whether its results are written."""
        return (self.folder / RESULTS).is_file()

    @property
    def hospitals(self) -> list[str]:
        """Who took part; nobody before the run's first start."""
        path = self.folder / "sites.json"
        return sorted(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    @property
    def results(self) -> Mapping[str, Any]:
        """What was found. Raises ConfigError where the run has not finished."""
        if not self.finished:
            raise ConfigError(f"run {self.name} has not finished; zamenis-coordinator resume {self.name}.")
        found: Mapping[str, Any] = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
        return found


def all_runs(federation: Federation) -> list[Run]:
    """Return the federation's runs, oldest first."""
    if not federation.runs.is_dir():
        return []
    return [Run(path.parent) for path in sorted(federation.runs.glob(f"*/{CONFIG}"))]


def find_run(federation: Federation, name: str) -> Run:
    """Return the run of that name. Raises ConfigError where there is none."""
    runs = {run.name: run for run in all_runs(federation)}
    if name not in runs:
        known = ", ".join(runs) or "none yet"
        raise ConfigError(f"there is no run {name} here; there are: {known}.")
    return runs[name]


def new_run(federation: Federation, config: Config) -> Run:
    """Write down a new run; nothing is computed yet."""
    names = {run.name for run in all_runs(federation)}
    name = next(name for number in range(1, 10**6) if (name := f"run-{number:03}") not in names)
    folder = federation.runs / name
    write_text(folder / CONFIG, deployable(config).to_toml())
    return Run(folder)


def deployable(config: Config) -> Config:
    """Return the configuration without what only a simulation can do; ConfigError where nothing is left."""
    named = config.experiment.algorithms
    federated = tuple(name for name in named if not ALGORITHMS[name].pooled)
    if not federated:
        raise ConfigError(
            "experiment.algorithms names only what needs all patients in one place; name reptile, say."
        )
    experiment = config.experiment.model_copy(update={"algorithms": federated})
    return config.model_copy(update={"experiment": experiment})


def carry_out(
    federation: Federation, run: Run, progress: Progress, tell: Callable[[str], None], *, command: str
) -> Mapping[str, Any]:
    """Begin or go on with `run` until its results stand; a SuperLink that is gone is waited for."""
    log_to(run.folder / "run.log")
    logging.getLogger("zamenis").addHandler(Aloud(tell))
    config = run.config
    if config.secure_aggregation.where == "nowhere":
        tell(UNMASKED)
    elif config.experiment.shots:
        tell(HOLDS_OUT)
    outcome = _through_outages(federation, run, config, progress, tell)
    found = results(config, outcome, command=command, workers=len(outcome.hospitals))
    found["engine"] = "deployed"
    found["aggregation"] = "plain" if config.secure_aggregation.where == "nowhere" else "secure"
    write_results(found, run.folder)
    return found


def _through_outages(
    federation: Federation, run: Run, config: Config, progress: Progress, tell: Callable[[str], None]
) -> Outcome:
    """Return the run's outcome; after an outage it goes on from its last checkpoint."""
    retry, begun = 1.0, False
    while True:
        try:
            with open_run(federation, run.folder / "flower-run") as grid:
                retry, begun = 1.0, True
                entries = Roster(federation.roster).entries()
                entries = tuple(one for one in entries if one.status is Status.ENROLLED)
                names = {one.node_id: one.hospital for one in entries}
                training = config.training_of(config.experiment.algorithms[0])
                roll = Roll(names, max(training.round_timeout, config.experiment.timeout), tell)
                identities = {one.hospital: one.identity_key for one in entries}
                secure = config.secure_aggregation.where != "nowhere"
                return conduct(grid, config, run.folder, progress, roll, identities if secure else None)
        except LinkError as error:
            if not begun:
                raise
            tell(f"{error} Trying again in {retry:.0f} s; nothing finished is lost.")
            time.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY)
