"""Leave one hospital out: meta-train on the others, adapt to it with K cases, test on its other patients.

Three phases, each one batch of messages on whatever grid is there: meta-train every initialisation
that is needed; choose each K's recipe on the meta-training hospitals, holding some of those out in
turn; judge every algorithm at every held-out hospital. Nothing is chosen on a held-out hospital.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from common import weights
from common.algorithms import ALGORITHMS
from common.config import Config
from common.errors import ConfigError
from common.inner_loop import InnerLoop
from common.sections import Engine
from common.wire import Description, Judgement
from server import evaluation
from server.app import MetaTrained, common_input_shape, initial_weights, meta_train, save_weights
from server.cohort import cohort
from server.evaluation import Question
from simulation.journal import Journal

Recipe = InnerLoop | None
"""How to adapt; None: not at all."""
Excluded = tuple[str, ...]
"""The hospitals that a meta-training must not see, sorted."""


class Progress:
    """What an experiment tells while it runs; this one keeps silent."""

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase of so many steps; call what is returned after each."""
        return lambda: None


@dataclass
class Experiment:
    """One experiment on one grid; `run` returns everything that its report says."""

    grid: Grid
    config: Config
    out: Path
    progress: Progress = field(default_factory=Progress)

    def run(self) -> dict[str, Any]:
        """Return the results as plain data (see `simulation.results`), after writing phi.safetensors."""
        clock = _Clock()
        self.sites = self._describe()
        self.nodes = {site: node for site, (node, _) in self.sites.items()}
        self.hospitals = sorted(site for site in self.nodes if not site.startswith(POOLED))
        self.held_out = self._held_out()
        self.like = initial_weights(self.config, common_input_shape(self.sites.values()))
        self.journal = Journal(self.out / "answers", settings=self.config.model_copy(update={"engine": Engine()}).to_json())
        clock.lap("data_s")
        self.trained = self._train_all()
        clock.lap("training_s")
        recipes = self._choose_recipes()
        clock.lap("choosing_s")
        answers = self._judge_all(recipes)
        clock.lap("evaluation_s")
        self._publish()
        clock.lap("publishing_s")
        return {
            "answers": answers,
            "recipes": recipes,
            "trained": self.trained,
            "descriptions": {site: self.sites[site][1] for site in self.hospitals},
            "parameters": sum(tensor.numel() for tensor in self.like.values()),
            "timing": clock.laps(),
        }

    def _describe(self) -> dict[str, tuple[int, Description]]:
        step = self.progress.phase("Reading hospitals", len(list(self.grid.get_node_ids())))
        return evaluation.describe(self.grid, self.config, step)

    def _held_out(self) -> list[str]:
        chosen = self.config.experiment.held_out or self.hospitals
        for site in chosen:
            if site not in self.hospitals:
                raise ConfigError(
                    f"experiment.held-out names {site}, which is no hospital here; "
                    f"there are {', '.join(self.hospitals)}."
                )
        if len(self.hospitals) < 2:
            raise ConfigError("leaving one hospital out needs at least two; data.hospitals has one.")
        return list(chosen)

    def _folds(self, held_out: str) -> list[str]:
        """Return the meta-training hospitals that are held out in turn to choose recipes."""
        others = [site for site in self.hospitals if site != held_out]
        if len(others) < 2 or not self.config.adaptation.folds:
            return []
        return cohort(others, self.config.adaptation.folds, seed=self.config.seed, server_round=0)

    def _trainings(self) -> list[tuple[str, Excluded]]:
        """Return every meta-training that this experiment needs, each once."""
        needed: dict[tuple[str, Excluded], None] = {}
        for algorithm, held_out in itertools.product(self.config.experiment.algorithms, self.held_out):
            method = ALGORITHMS[algorithm]
            if method.local_update is None:
                continue
            needed[algorithm, (held_out,)] = None
            for fold in self._folds(held_out) if self._chooses(algorithm) else ():
                needed[algorithm, excluding(held_out, fold)] = None
        if self.config.experiment.publish:
            needed[self._headliner(), ()] = None
        return list(needed)

    def _headliner(self) -> str:
        """Return the first algorithm that is federated: it is published and everyone is compared with it."""
        federated = (
            name
            for name in (*self.config.experiment.algorithms, "reptile")
            if ALGORITHMS[name].local_update and not ALGORITHMS[name].pooled
        )
        return next(federated)

    def _chooses(self, algorithm: str) -> bool:
        """Return whether an algorithm chooses its own recipes; the pooled bound borrows the headliner's."""
        needs_choice = any(self.config.experiment.shots) and bool(self.config.adaptation.folds)
        return needs_choice and not ALGORITHMS[algorithm].pooled

    def _train_all(self) -> dict[tuple[str, Excluded], MetaTrained]:
        trainings = self._trainings()
        rounds = sum(self.config.training_of(algorithm).rounds for algorithm, _ in trainings)
        step = self.progress.phase("Meta-training", rounds)
        initial = weights.pack(self.like)
        trained = {}
        for algorithm, excluded in trainings:
            name = "without-" + "+".join(excluded) if excluded else "all"
            trained[algorithm, excluded] = meta_train(
                self.grid,
                self.config,
                algorithm,
                self._training_nodes(algorithm, excluded),
                initial,
                self.out / "training" / algorithm / name,
                lambda _: step(),
            )
        return trained

    def _training_nodes(self, algorithm: str, excluded: Excluded) -> dict[str, int]:
        if ALGORITHMS[algorithm].pooled:
            together = pooled_name(excluded)
            return {together: self.nodes[together]}
        return {site: self.nodes[site] for site in self.hospitals if site not in excluded}

    def _phi(self, algorithm: str, excluded: Excluded) -> Any:
        if ALGORITHMS[algorithm].local_update is None:
            return self._initial
        return self.trained[algorithm, excluded].phi

    @property
    def _initial(self) -> Any:
        if not hasattr(self, "_packed"):
            self._packed = weights.pack(self.like)
        return self._packed

    def candidates(self, algorithm: str) -> list[Recipe]:
        """Return the recipes to choose among; not adapting is one, except for an untrained network."""
        settings = self.config.adaptation
        recipes: list[Recipe] = [] if ALGORITHMS[algorithm].local_update is None else [None]
        for scope, lr, steps in itertools.product(settings.scopes, settings.inner_lrs, settings.inner_steps):
            recipes.append(
                InnerLoop(
                    steps=steps,
                    lr=lr,
                    optimizer=settings.optimizer,
                    batch_size=settings.batch_size,
                    scope=scope,
                )
            )
        return recipes

    def _choose_recipes(self) -> dict[tuple[str, str, int], Recipe]:
        """Return for (algorithm, held-out hospital, K) the recipe that did best on the folds."""
        shots = [shot for shot in self.config.experiment.shots if shot]
        asked: dict[tuple[str, Excluded, str, int, Recipe], Question] = {}
        wanted = [
            (algorithm, held_out, shot)
            for algorithm, held_out, shot in itertools.product(
                self.config.experiment.algorithms, self.held_out, shots
            )
            if self._chooses(algorithm)
        ]
        for algorithm, held_out, shot in wanted:
            for fold, recipe in itertools.product(self._folds(held_out), self.candidates(algorithm)):
                key = self._trial(algorithm, held_out, fold, shot, recipe)
                asked[key] = self._question(*key, draws=self.config.adaptation.draws, purpose="choose")
        scores = {
            key: _score(answer, self.config.experiment.metric)
            for key, answer in zip(asked, self._ask("Choosing recipes", list(asked.values())), strict=True)
        }

        def merit(algorithm: str, held_out: str, shot: int, recipe: Recipe) -> float:
            trials = (self._trial(algorithm, held_out, fold, shot, recipe) for fold in self._folds(held_out))
            known = [score for trial in trials if (score := scores[trial]) is not None]
            return sum(known) / len(known) if known else 0.0

        return {
            (algorithm, held_out, shot): max(
                self.candidates(algorithm), key=lambda recipe: merit(algorithm, held_out, shot, recipe)
            )
            for algorithm, held_out, shot in wanted
        }

    def _trial(
        self, algorithm: str, held_out: str, fold: str, shot: int, recipe: Recipe
    ) -> tuple[str, Excluded, str, int, Recipe]:
        """Return what identifies a trial of a recipe; local-only's do not depend on who is held out."""
        trained = ALGORITHMS[algorithm].local_update is not None
        return algorithm, excluding(held_out, fold) if trained else (), fold, shot, recipe

    def recipe_for(self, recipes: Mapping[tuple[str, str, int], Recipe], algorithm: str, site: str, shot: int) -> Recipe:
        """Return the chosen recipe, the headliner's for the pooled bound, else the first of each list."""
        for name in (algorithm, self._headliner()):
            if (name, site, shot) in recipes:
                return recipes[name, site, shot]
        return next(recipe for recipe in self.candidates(algorithm) if recipe)

    def _judge_all(
        self, recipes: Mapping[tuple[str, str, int], Recipe]
    ) -> dict[tuple[str, str, int], Judgement]:
        wanted = list(
            itertools.product(
                self.config.experiment.algorithms, self.held_out, self.config.experiment.shots
            )
        )
        questions = [
            self._question(
                algorithm,
                (site,),
                site,
                shot,
                self.recipe_for(recipes, algorithm, site, shot) if shot else None,
                draws=self.config.experiment.draws,
                purpose="test",
            )
            for algorithm, site, shot in wanted
        ]
        return dict(zip(wanted, self._ask("Adapting to held-out hospitals", questions), strict=True))

    def _question(
        self, algorithm: str, excluded: Excluded, site: str, shot: int, recipe: Recipe, *, draws: int, purpose: str
    ) -> Question:
        return Question(
            site=site,
            algorithm=algorithm,
            phi=self._phi(algorithm, excluded),
            shot=shot,
            recipe=recipe,
            draws=draws,
            replicates=self.config.experiment.replicates if purpose == "test" else 0,
            purpose=purpose,
        )

    def _ask(self, phase: str, questions: Sequence[Question]) -> Iterable[Judgement]:
        """Return the answers in order, asking only what the journal does not know."""
        answers = {place: self.journal.recall(question) for place, question in enumerate(questions)}
        unknown = [place for place, answer in answers.items() if answer is None]
        step = self.progress.phase(phase, len(unknown))
        asked = [questions[place] for place in unknown]
        for index, answer in evaluation.judge(self.grid, self.config, self.nodes, asked):
            self.journal.keep(asked[index], answer)
            answers[unknown[index]] = answer
            step()
        return [answer for answer in answers.values() if answer is not None]

    def _publish(self) -> None:
        published = self.trained.get((self._headliner(), ()))
        phi = weights.unpack(published.phi, self.like) if published else self.like
        save_weights(self.out / "phi.safetensors", phi, self.config)


POOLED = "pooled without "
"""How the name of a node that holds several hospitals' data together begins."""


def pooled_name(excluded: Excluded) -> str:
    """Return the name of the node that holds every hospital's data but the excluded ones'."""
    return POOLED + " and ".join(excluded)


def excluding(*sites: str) -> Excluded:
    """Return hospitals that a meta-training must not see, in one order."""
    return tuple(sorted(sites))


def _score(answer: Judgement, metric: str) -> float | None:
    values = answer.draws.get(metric)
    return None if answer.left_out or values is None else float(values.mean())


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
