"""A coordinator's runs: each a folder that says everything of it, and can be gone on with.

`config.toml`, `chosen.json` (whom it is for, where that was said), `sites.json` (who took part), `training/`
and `answers/` (what is finished), `end.json` (how it ended, where it did not finish), and at the end
`results.json`, `report.html`, `phi.safetensors` and `tensorboard/`, as the simulator writes them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common import config as configuration
from common import service
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError, LinkError, NothingLearnedError, ZamenisError
from common.files import write_text
from server.control import Control
from server.entry import Entry, Status
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
LOOK = 0.5
"""Seconds between two looks at who is connected."""
CONFIG = "config.toml"
CHOSEN = "chosen.json"
END = "end.json"
PROCESS = "run"
"""The name under which the process that carries a run out holds its folder (`common.service`)."""


class State(StrEnum):
    """How a run is."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"
    NOTHING_LEARNED = "learned nothing"
    FAILED = "failed"


@dataclass(frozen=True)
class End:
    """How a run ended that did not finish, and why."""

    state: State
    why: str


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
    def running(self) -> bool:
        """Whether a process carries it out now."""
        return service.status(self.folder, PROCESS) is not None

    @property
    def end(self) -> End:
        """How the run is; why, where it ended without having finished."""
        if self.running:
            return End(State.RUNNING, "")
        if self.finished:
            return End(State.FINISHED, "")
        try:
            told = json.loads((self.folder / END).read_text(encoding="utf-8"))
            return End(State(told["state"]), str(told["why"]))
        except (OSError, ValueError, KeyError, TypeError):
            return End(State.INTERRUPTED, "")

    @property
    def chosen(self) -> frozenset[str]:
        """The hospitals that the run is for; none: all that are enrolled."""
        path = self.folder / CHOSEN
        return frozenset(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ())

    @property
    def hospitals(self) -> list[str]:
        """Who took part; nobody before the run's first start. ConfigError where that is damaged."""
        path = self.folder / "sites.json"
        try:
            return sorted(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
        except ValueError as error:
            raise ConfigError(f"{path}: is damaged; restore it, or begin another run.") from error

    @property
    def results(self) -> Mapping[str, Any]:
        """What was found. Raises ConfigError where the run has not finished."""
        if not self.finished:
            raise ConfigError(self.unfinished())
        found: Mapping[str, Any] = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
        return found

    def unfinished(self) -> str:
        """Return how a run is that has not finished, why, and what to do."""
        end = self.end
        if end.state is State.RUNNING:
            return f"run {self.name} is still running."
        why = f":\n{end.why}\n" if end.why else "; "
        return f"run {self.name} has not finished ({end.state}){why}zamenis-coordinator resume {self.name}."


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


def new_run(federation: Federation, config: Config, hospitals: Collection[str] = ()) -> Run:
    """Write down a new run, of these hospitals or all; nothing is computed yet."""
    names = {run.name for run in all_runs(federation)}
    name = next(name for number in range(1, 10**6) if (name := f"run-{number:03}") not in names)
    folder = federation.runs / name
    text = deployable(config).to_toml()
    if hospitals:
        write_text(folder / CHOSEN, json.dumps(sorted(hospitals)))
    write_text(folder / CONFIG, text)
    return Run(folder)


def enrolled(federation: Federation) -> dict[str, Entry]:
    """Return the enrolled hospitals by name."""
    entries = Roster(federation.roster).entries()
    return {one.hospital: one for one in entries if one.status is Status.ENROLLED}


def wait_for(
    federation: Federation, hospitals: Collection[str], seconds: float, tell: Callable[[str], None]
) -> None:
    """Wait so long at most until these hospitals, or all that are enrolled, are connected.

    Raises ConfigError where one is not enrolled.
    """
    here = enrolled(federation)
    if strangers := sorted(set(hospitals) - here.keys()):
        raise ConfigError(
            f"--hospitals: {', '.join(strangers)}: not enrolled. Enrolled are {', '.join(here) or 'none'}."
        )
    wanted = {one.node_id: name for name, one in here.items() if name in hospitals or not hospitals}
    control, deadline, told = Control(federation), time.monotonic() + seconds, ""
    while True:
        online = control.online()
        away = ", ".join(sorted(name for node, name in wanted.items() if node not in online))
        left = deadline - time.monotonic()
        if not away or left <= 0:
            return
        if away != told:
            tell(f"Waiting for {away}, for {left:.0f} s at most.")
            told = away
        time.sleep(min(LOOK, left))


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
    """Begin or go on with `run` until its results stand; a SuperLink that is gone is waited for.

    Where it ends otherwise, `run.end` says how and why from then on.
    """
    log_to(run.folder / "run.log")
    logging.getLogger("zamenis").addHandler(Aloud(tell))
    (run.folder / END).unlink(missing_ok=True)
    try:
        return _carry_out(federation, run, progress, tell, command=command)
    except NothingLearnedError as error:
        _write_end(run, State.NOTHING_LEARNED, str(error))
        raise
    except ZamenisError as error:
        _write_end(run, State.REFUSED, str(error))
        raise
    except Exception as error:
        logger.exception("the run failed")
        _write_end(run, State.FAILED, f"{type(error).__name__}; {run.folder / 'run.log'} has the rest.")
        raise


def _write_end(run: Run, state: State, why: str) -> None:
    with suppress(OSError):  # a full disk is the likeliest end of all
        write_text(run.folder / END, json.dumps(asdict(End(state, why))))


def _carry_out(
    federation: Federation, run: Run, progress: Progress, tell: Callable[[str], None], *, command: str
) -> Mapping[str, Any]:
    config = run.config
    if config.secure_aggregation.where == "nowhere":
        tell(UNMASKED)
    elif config.experiment.shots:
        tell(HOLDS_OUT)
    outcome = _through_outages(federation, run, config, progress, tell)
    found = results(config, outcome, command=command, workers=len(outcome.hospitals))
    found["engine"] = "deployed"
    found["export"] = f"zamenis-coordinator export {run.name} phi.safetensors"
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
            with open_run(federation, run.folder) as grid:
                retry, begun = 1.0, True
                here = enrolled(federation)
                entries = [one for name, one in here.items() if name in run.chosen or not run.chosen]
                names = {one.node_id: one.hospital for one in entries}
                training = config.training_of(config.experiment.algorithms[0])
                roll = Roll(names, max(training.round_timeout, config.experiment.timeout), logger.warning)
                identities = {one.hospital: one.identity_key for one in entries}
                secure = config.secure_aggregation.where != "nowhere"
                return conduct(grid, config, run.folder, progress, roll, identities if secure else None)
        except LinkError as error:
            if not begun:
                raise
            tell(f"{error} Trying again in {retry:.0f} s; nothing finished is lost.")
            time.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY)
