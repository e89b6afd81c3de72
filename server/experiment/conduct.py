"""Running a plan on a grid, whatever the engine: meta-train, choose recipes, judge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.serverapp import Grid

from common import weights, wire
from common.algorithms import ALGORITHMS
from common.columns import Statistics
from common.config import Config
from common.initialise import shared_weights
from common.published import Published
from common.sections import Engine
from common.weights import Weights
from common.wire import Description, Judgement
from server import evaluation
from server.app import MetaTrained, common_input_shape, meta_train
from server.checkpoint import Checkpoint
from server.evaluation import Question
from server.experiment.attendance import Roll, attend
from server.experiment.journal import Journal
from server.experiment.plan import Cell, Plan, Recipe, Scores, Training, Trial, choose_each
from server.outer_loop import Vector

POOL = "pool/"
"""How the name of a node that holds several hospitals' data together begins; no folder is called so."""
FEWEST = 2
"""Hospitals that a sum covers at least; each hospital's policy may ask for more."""


class Progress(Protocol):
    """What an experiment tells while it runs."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase of so many steps; call what is returned after each."""


@dataclass(frozen=True)
class Outcome:
    """Everything that an experiment found out."""

    answers: Mapping[Cell, Judgement]
    recipes: Mapping[Cell, Recipe]
    trained: Mapping[Training, MetaTrained]
    hospitals: Mapping[str, Description]
    parameters: int
    timing: Mapping[str, float]


def conduct(
    grid: Grid,
    config: Config,
    out: Path,
    progress: Progress,
    roll: Roll | None = None,
    identities: Mapping[str, bytes] | None = None,
) -> Outcome:
    """Run the experiment of `config` on `grid`; leave checkpoints, answers and phi.safetensors in `out`.

    Without a `roll` every site must take part; with one, a run goes on without those that cannot. With
    `identities`, every site's public key, the coordinator sees sums of deltas alone.
    """
    clock = _Clock()
    step = progress.phase("Reading hospitals", len(list(grid.get_node_ids())))
    sites = attend(grid, config, out, roll, step)
    shape = common_input_shape(sites.values())
    initial = {name: shared_weights(config, name, shape) for name in config.experiment.algorithms}
    hospitals = {name: told for name, (_, told) in sorted(sites.items()) if not name.startswith(POOL)}
    plan = Plan(config, list(hospitals))
    plan.check_cohorts()
    plan.check_groups()
    if identities:
        plan.check_sums(FEWEST)
    vectors = {name: weights.pack(one) for name, one in initial.items()}
    floor = _Floor(grid, config, out, progress, sites, vectors, roll, identities)
    clock.lap("data_s")
    trained = floor.train(plan)
    clock.lap("training_s")
    choices = plan.choices()
    scores = floor.try_out(
        trained, {trial for by in choices.values() for trials in by.values() for trial in trials}
    )
    recipes = choose_each(choices, scores)
    clock.lap("choosing_s")
    verdicts = plan.verdicts(recipes)
    answers = dict(zip(verdicts, floor.judge(trained, verdicts.values()), strict=True))
    clock.lap("evaluation_s")
    like = initial[plan.headliner or config.experiment.algorithms[0]]
    handed_on = choose_each(plan.handed_on(choices), scores)
    made = trained[plan.published] if plan.published else None
    published = _published(plan, like, made, list(hospitals.values()), handed_on)
    published.save(out / "phi.safetensors")
    return Outcome(answers, recipes, trained, hospitals, len(weights.pack(like)), clock.laps())


def _published(
    plan: Plan,
    like: Weights,
    made: MetaTrained | None,
    hospitals: Sequence[Description],
    recipes: Mapping[int, Recipe],
) -> Published:
    """Return what a run hands out: phi trained over every hospital, or untrained if nothing was to be."""
    features = hospitals[0].features
    return Published(
        weights.unpack(made.phi, like) if made else like,
        plan.config,
        plan.headliner or plan.config.experiment.algorithms[0],
        hospitals[0].input_shape,
        features and features.with_codes_of((one.features for one in hospitals), len(hospitals) // 2 + 1),
        Statistics.from_json(made.statistics) if made and made.statistics else None,
        recipes,
    )


def pool_name(excluded: Iterable[str]) -> str:
    """Return the name of the node that holds every hospital's data but the excluded ones'."""
    return f"{POOL}without {' and '.join(excluded)}"


@dataclass(frozen=True)
class _Floor:
    """Where the work is done: a grid, its nodes by name, and the folder that everything is kept in."""

    grid: Grid
    config: Config
    out: Path
    progress: Progress
    sites: Mapping[str, tuple[int, Description]]
    initial: Mapping[str, Vector]
    """What crosses of each algorithm's initial weights."""
    roll: Roll | None
    identities: Mapping[str, bytes] | None

    def train(self, plan: Plan) -> dict[Training, MetaTrained]:
        """Return the end of every meta-training of the plan; finished rounds are never run again."""
        trainings = plan.trainings()
        step = self.progress.phase(
            "Meta-training", sum(self.config.training_of(one.algorithm).rounds for one in trainings)
        )
        return {
            training: meta_train(
                self.grid,
                self.config,
                training.algorithm,
                self._sites_of(training, plan.hospitals),
                self.initial[training.algorithm],
                self.out / training.folder,
                _through_rounds(step),
                identities=None if ALGORITHMS[training.algorithm].pooled else self.identities,
            )
            for training in trainings
        }

    def _sites_of(self, training: Training, hospitals: Iterable[str]) -> dict[str, tuple[int, Description]]:
        if ALGORITHMS[training.algorithm].pooled:
            together = pool_name(training.excluded)
            return {together: self.sites[together]}
        return {site: self.sites[site] for site in hospitals if site not in training.excluded}

    def try_out(
        self, trained: Mapping[Training, MetaTrained], trials: Iterable[Trial]
    ) -> dict[Trial, Scores | None]:
        """Return each trial's headline metric per draw, None where it could not be made."""
        ordered = sorted(trials, key=repr)
        draws = self.config.adaptation.draws
        questions = [self._question(trained, trial, "choose", draws, replicates=0) for trial in ordered]
        metric, kind = self.config.metric, self.config.kind
        return {
            trial: None if answer.left_out else _per_draw(kind.goodness(metric, answer.draws[metric]), draws)
            for trial, answer in zip(ordered, self._ask("Choosing recipes", questions), strict=True)
        }

    def judge(self, trained: Mapping[Training, MetaTrained], trials: Iterable[Trial]) -> list[Judgement]:
        """Return the judgement of each trial, in order."""
        settings = self.config.experiment
        questions = [
            self._question(trained, trial, wire.TEST, settings.draws, replicates=settings.replicates)
            for trial in trials
        ]
        return self._ask("Adapting to held-out hospitals", questions)

    def _question(
        self,
        trained: Mapping[Training, MetaTrained],
        trial: Trial,
        purpose: str,
        draws: int,
        *,
        replicates: int,
    ) -> Question:
        training = trained[trial.training] if trial.training else None
        return Question(
            site=trial.site,
            algorithm=trial.algorithm,
            phi=training.phi if training else self.initial[trial.algorithm],
            shot=trial.shot,
            recipe=trial.recipe,
            draws=draws,
            replicates=replicates,
            purpose=purpose,
            statistics=training.statistics if training else "",
        )

    def _ask(self, phase: str, questions: list[Question]) -> list[Judgement]:
        """Return the answers in order, asking only what the journal does not know."""
        decisive = self.config.model_copy(update={"engine": Engine()})
        digests = {site: told.digest for site, (_, told) in self.sites.items()}
        settings = json.dumps([version("zamenis"), decisive.to_json(), digests], sort_keys=True)
        journal = Journal(self.out / "answers", settings=settings)
        nodes = {site: node for site, (node, _) in self.sites.items()}
        answers = [journal.recall(question) for question in questions]
        unknown = [place for place, answer in enumerate(answers) if answer is None]
        step = self.progress.phase(phase, len(unknown)) if unknown else lambda: None
        asked = [questions[place] for place in unknown]
        lost: dict[int, str] = {}
        on_trouble = lost.__setitem__ if self.roll else None
        patience = self.roll.patience if self.roll else evaluation.NO_HURRY
        found = evaluation.judge(self.grid, self.config, nodes, asked, on_trouble, timeout=patience)
        for index, answer in found:
            journal.keep(asked[index], answer)
            answers[unknown[index]] = answer
            step()
        for index, words in lost.items():
            answers[unknown[index]] = Judgement({}, {}, 0.0, 0.0, left_out=words)
            step()
        return [answer for answer in answers if answer is not None]


def _through_rounds(step: Callable[[], None]) -> Callable[[Checkpoint], None]:
    """Return what steps once for each finished round: those of an earlier start at once."""
    done = 0

    def on_round(now: Checkpoint) -> None:
        nonlocal done
        for _ in range(now.state.server_round - done):
            step()
        done = now.state.server_round

    return on_round


def _per_draw(values: Scores, draws: int) -> Scores:
    """Return one value per draw; not adapting has a single one, the same for every draw."""
    return np.broadcast_to(values, (draws,)) if len(values) == 1 else values


class _Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = round(now - self._last, 3)
        self._last = now

    def laps(self) -> dict[str, float]:
        return {"total_s": round(time.monotonic() - self._begun, 3), **self._laps}
