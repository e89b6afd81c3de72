"""What an experiment has to train and to ask, worked out from its configuration alone.

Leave one hospital out: everything about a held-out hospital's adaptation is chosen on the other
hospitals, some of which are held out in turn (folds) for that. Nothing here computes anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from common import heads
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError
from common.inner_loop import InnerLoop
from server.cohort import cohort
from server.groups import groups_of

Recipe = InnerLoop | None
"""How to adapt; None: not at all."""
Chosen = TypeVar("Chosen", bound=Hashable)
Scores = NDArray[np.float64]
"""The headline metric `[draw]`, larger is better."""


@dataclass(frozen=True)
class Training:
    """One meta-training, over all hospitals but the `excluded` (sorted)."""

    algorithm: str
    excluded: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Its folder below a run's; names are quoted, so that none meet."""
        without = "+".join(["without", *(quote(site, safe="") for site in self.excluded)])
        return Path("training") / self.algorithm / without


@dataclass(frozen=True)
class Cell:
    """One cell of the report: an algorithm at a held-out hospital with K cases per class."""

    algorithm: str
    site: str
    shot: int


@dataclass(frozen=True)
class Trial:
    """Adapting what a training gave (None: the untrained network) to K cases at a site by a recipe."""

    algorithm: str
    training: Training | None
    site: str
    shot: int
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """The experiment of `config` over `hospitals` (sorted names)."""

    config: Config
    hospitals: Sequence[str]

    @cached_property
    def held_out(self) -> list[str]:
        """The hospitals held out in turn; none where no K is asked for.

        Raises ConfigError for one that is not there, or too few.
        """
        if not self.config.experiment.shots:
            return []
        known = ", ".join(self.hospitals)
        for site in self.config.experiment.held_out:
            if site not in self.hospitals:
                raise ConfigError(
                    f"experiment.held-out names {site}, which is no hospital here; there are {known}."
                )
        if len(self.hospitals) < 2:
            raise ConfigError(f"leaving one hospital out needs at least two; there is {known or 'none'}.")
        return list(self.config.experiment.held_out or self.hospitals)

    @cached_property
    def headliner(self) -> str | None:
        """The first federated algorithm, if any: it is published."""
        return next(iter(self._federated()), None)

    @cached_property
    def lender(self) -> str | None:
        """The first federated algorithm that chooses recipes, if any: it lends the pooled bound its own."""
        return next((name for name in self._federated() if self._chooses(name)), None)

    def _federated(self) -> list[str]:
        named = self.config.experiment.algorithms
        return [name for name in named if ALGORITHMS[name].local_update and not ALGORITHMS[name].pooled]

    def folds(self, held_out: str) -> list[str]:
        """Return the meta-training hospitals that are held out in turn to choose recipes."""
        others = [site for site in self.hospitals if site != held_out]
        if len(others) < 2 or not self.config.adaptation.folds:
            return []
        return cohort(others, self.config.adaptation.folds, seed=self.config.seed, server_round=0)

    def trainings(self) -> list[Training]:
        """Return every meta-training that is needed, each once; two hospitals' folds share theirs."""
        needed: dict[Training, None] = {}
        for algorithm, held_out in itertools.product(self.config.experiment.algorithms, self.held_out):
            if ALGORITHMS[algorithm].local_update is None:
                continue
            needed[_without(algorithm, held_out)] = None
            for fold in self.folds(held_out) if self._chooses(algorithm) else ():
                needed[_without(algorithm, held_out, fold)] = None
        if self.published:
            needed[self.published] = None
        return list(needed)

    def check_sums(self, fewest: int) -> None:
        """Raise ConfigError where a training would sum over fewer hospitals than `fewest`."""
        federated = (one for one in self.trainings() if not ALGORITHMS[one.algorithm].pooled)
        away = max((len(one.excluded) for one in federated), default=0)
        if len(self.hospitals) - away < fewest:
            raise ConfigError(
                f"secure aggregation needs {fewest} hospitals in every training, and holding {away} of "
                f"{len(self.hospitals)} out at once leaves fewer. Have {fewest + away} hospitals, or hold "
                "fewer out: adaptation.folds = 0 chooses no recipes, experiment.shots = [] judges nowhere."
            )

    def check_cohorts(self) -> None:
        """Raise ConfigError where a training has fewer hospitals than its rounds need."""
        for one in self.trainings():
            least = self.config.training_of(one.algorithm).min_cohort
            there = len(self.hospitals) - len(one.excluded)
            if there < least and not ALGORITHMS[one.algorithm].pooled:
                raise ConfigError(
                    f"training.min-cohort = {least}: a training has {there} of {len(self.hospitals)} "
                    f"hospitals, the others being held out. Have {least + len(one.excluded)}, ask for fewer, "
                    "or hold fewer out: adaptation.folds = 0 chooses no recipes, experiment.shots = [] "
                    "judges nowhere."
                )

    def check_groups(self) -> None:
        """Raise ConfigError where a training has too few hospitals for the groups that are to bear liars."""
        for one in self.trainings():
            groups_of(
                self.config, one.algorithm, [site for site in self.hospitals if site not in one.excluded]
            )

    @property
    def published(self) -> Training | None:
        """The training over every hospital, whose phi a run hands out, if it is to."""
        wanted = self.headliner and self.config.experiment.publish
        return Training(self.headliner, ()) if self.headliner and wanted else None

    def candidates(self, algorithm: str) -> list[Recipe]:
        """Return the recipes to choose among; not adapting is one, where a trained phi has an answer."""
        settings = self.config.adaptation
        untrained = ALGORITHMS[algorithm].local_update is None
        scopes = ("all",) if untrained else settings.scopes
        loops: list[Recipe] = [
            InnerLoop(
                steps,
                lr,
                settings.optimizer,
                settings.batch_size,
                proximal=settings.proximal if scope == "proximal" else 0.0,
                scope="adapter" if scope == "adapter" else "all",
            )
            for scope, lr, steps in itertools.product(scopes, settings.inner_lrs, settings.inner_steps)
        ]
        may_stay = not untrained and heads.predicts_unadapted(self.config, algorithm)
        return [None, *loops] if may_stay else loops

    def choices(self) -> dict[Cell, dict[Recipe, list[Trial]]]:
        """Return for every cell whose recipe is to be chosen the trials of each candidate, one per fold."""
        return {
            cell: {
                recipe: [self._trial(cell, fold, recipe) for fold in self.folds(cell.site)]
                for recipe in self.candidates(cell.algorithm)
            }
            for cell in self.cells()
            if cell.shot and self._chooses(cell.algorithm) and self.folds(cell.site)
        }

    def handed_on(
        self, choices: Mapping[Cell, Mapping[Recipe, Sequence[Trial]]]
    ) -> dict[int, dict[Recipe, list[Trial]]]:
        """Return by K the trials from which the published phi's own recipe is chosen: those of all cells."""
        together: dict[int, dict[Recipe, list[Trial]]] = {}
        for cell, trials in choices.items():
            if cell.algorithm == self.headliner:
                for recipe, tried in trials.items():
                    together.setdefault(cell.shot, {}).setdefault(recipe, []).extend(tried)
        return together

    def cells(self) -> list[Cell]:
        """Return every cell of the report."""
        settings = self.config.experiment
        return [Cell(*cell) for cell in itertools.product(settings.algorithms, self.held_out, settings.shots)]

    def verdicts(self, recipes: Mapping[Cell, Recipe]) -> dict[Cell, Trial]:
        """Return the trial behind each cell, once recipes are chosen."""
        return {
            cell: Trial(
                cell.algorithm,
                _trained(cell.algorithm, cell.site),
                cell.site,
                cell.shot,
                self._recipe(recipes, cell) if cell.shot else None,
            )
            for cell in self.cells()
        }

    def _chooses(self, algorithm: str) -> bool:
        method = ALGORITHMS[algorithm]
        return any(self.config.experiment.shots) and not method.pooled and method.adapter is None

    def _recipe(self, recipes: Mapping[Cell, Recipe], cell: Cell) -> Recipe:
        """Return the chosen recipe, the lender's for the pooled bound, else the first of each list."""
        lender = self.lender if ALGORITHMS[cell.algorithm].pooled else None
        for name in (cell.algorithm, lender):
            if name and (same := Cell(name, cell.site, cell.shot)) in recipes:
                return recipes[same]
        return next(recipe for recipe in self.candidates(cell.algorithm) if recipe)

    def _trial(self, cell: Cell, fold: str, recipe: Recipe) -> Trial:
        training = _trained(cell.algorithm, cell.site, fold)
        return Trial(cell.algorithm, training, fold, cell.shot, recipe)


def choose_each(
    choices: Mapping[Chosen, Mapping[Recipe, Sequence[Trial]]], scores: Mapping[Trial, Scores | None]
) -> dict[Chosen, Recipe]:
    """Return the recipe of each choice of which any trial could be made (see `choose`)."""
    return {
        key: choose(trials, scores)
        for key, trials in choices.items()
        if any(scores[trial] is not None for tried in trials.values() for trial in tried)
    }


def choose(trials: Mapping[Recipe, Sequence[Trial]], scores: Mapping[Trial, Scores | None]) -> Recipe:
    """Return the recipe that surely gains most over the first one (not adapting, where that is possible).

    A fold's gain is the mean over support draws of a recipe's score less the first one's on the same
    draw, less one standard error; a recipe is worth its gain at its worst fold. What does not clearly
    help at every hospital tried does not move a new hospital's model. A fold that could not be tried
    (too few patients there) has no scores and does not count.
    """
    first = next(iter(trials))

    def sure_gain(recipe: Recipe) -> float:
        gains = [
            mine - base
            for trial, reference in zip(trials[recipe], trials[first], strict=True)
            if (mine := scores[trial]) is not None and (base := scores[reference]) is not None
        ]
        gains = [gain for gain in gains if not np.isnan(gain).any()]
        if not gains or recipe == first:
            return 0.0
        return min(float(gain.mean() - gain.std() / np.sqrt(len(gain))) for gain in gains)

    return max(trials, key=sure_gain)


def _without(algorithm: str, *sites: str) -> Training:
    return Training(algorithm, tuple(sorted(sites)))


def _trained(algorithm: str, *sites: str) -> Training | None:
    """Return the training without `sites`, or None for an algorithm that trains nothing beforehand."""
    return None if ALGORITHMS[algorithm].local_update is None else _without(algorithm, *sites)
