"""What a coordinator's `status` shows of its hospitals and of a run, from what lies on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.enrolment import About
from common.errors import ConfigError
from server.app import CHECKPOINT
from server.checkpoint import history_at
from server.experiment.plan import Plan, Training
from server.logs import warnings_in
from server.report.words import spans
from server.runs import Run, State

MOST_NAMES = 3
"""Names in a table's cell; of more the number is told."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: its first meta-training with rounds left, or its last one."""

    training: Training
    number: int
    trainings: int
    rounds: int
    history: list[Mapping[str, Any]]
    """One entry for each finished round."""


def position(run: Run) -> Position | None:
    """Return where a run stands; None before it has hospitals, or where it trains nothing."""
    config, found = run.config, None
    try:
        trainings = Plan(config, run.hospitals).trainings() if run.hospitals else []
    except ConfigError:
        return None
    for number, training in enumerate(trainings, 1):
        rounds = config.training_of(training.algorithm).rounds
        history = history_at(run.folder / training.folder / CHECKPOINT)
        found = Position(training, number, len(trainings), rounds, history)
        if len(history) < rounds:
            break
    return found


def of_run(run: Run, enrolled: Collection[str]) -> dict[str, str]:
    """Return how a run goes, by name of fact; empty where nothing is to be said."""
    try:
        return _facts(run, enrolled)
    except ConfigError as error:  # a damaged folder hides nothing else
        return {"run": f"{run.name}: {error}"}


def _facts(run: Run, enrolled: Collection[str]) -> dict[str, str]:
    end, place, log = run.end, position(run), warnings_in(run.folder / "run.log")
    running = end.state is State.RUNNING
    wanted = run.chosen or frozenset(enrolled)
    away = sorted(wanted - set(run.hospitals)) if run.hospitals else []
    return {
        "run": f"{run.name}, {end.state}" + ("" if run.finished else _stands(place, running)),
        "why": end.why,
        "takes part": ", ".join(run.hospitals),
        "not in it": "\n".join(_not_in_it(away, [words for _, words in log])),
        "left out": "\n".join(_left_out(place.history)) if place else "",
        "last word": f"{log[-1][0]} {log[-1][1]}" if running and log else "",
    }


def _stands(place: Position | None, running: bool) -> str:
    if place is None:
        return ": asks the hospitals what they have" if running else ""
    done, rounds = len(place.history), place.rounds
    if done == rounds:
        stands = f": all {rounds} rounds are done"
    elif running:
        stands = f": round {done + 1} of {rounds}"
    else:
        stands = f" after {done} of {rounds} rounds"
    if place.trainings == 1:
        return stands
    excluded = " and ".join(place.training.excluded)
    name = place.training.algorithm + (f" without {excluded}" if excluded else "")
    return f"{stands} of training {place.number} of {place.trainings} ({name})"


def _not_in_it(away: Iterable[str], log: Iterable[str]) -> Iterator[str]:
    """Yield a line on each hospital that the run does without: the last that was said of it, or its name."""
    said = {words.partition(": ")[0]: words for words in log}
    for site in away:
        yield said.get(site, site)


def _left_out(history: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line on each hospital and reason, with the rounds."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for entry in history:
        for site, words in entry.get("missing", {}).items():
            rounds.setdefault((site, words.rstrip(".")), []).append(entry["round"])
    for (site, words), numbers in sorted(rounds.items()):
        yield f"{site}, round{'s' * (len(numbers) > 1)} {spans(numbers)}: {words}."


def of_hospitals(
    enrolled: Collection[str], seen: Mapping[str, str] | None, about: Mapping[str, About]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield for each enrolled hospital: name, when it was seen, its version, whom it has to confirm still.

    `seen` is None where nobody can tell.
    """
    for name in sorted(enrolled):
        told = about.get(name)
        left = sorted(set(enrolled) - {name, *told.knows}) if told else []
        names = ", ".join(left) if len(left) <= MOST_NAMES else f"{len(left)} of {len(enrolled) - 1}"
        confirms = (names or "-") if told else "?"
        last = "?" if seen is None else seen.get(name, "never")
        yield name, last, told.version if told else "?", confirms
