"""The plan: everything once, nothing about a held-out hospital decided with its own cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algorithms import ALGORITHMS
from common.config import Config, load
from common.errors import ConfigError
from common.inner_loop import InnerLoop
from server.experiment.plan import Cell, Plan, Recipe, Scores, Training, Trial, choose

few = settings(deadline=None, max_examples=40)
"""A plan takes milliseconds, and a busy machine longer."""
GENTLE, BOLD = InnerLoop(steps=5, lr=0.01), InnerLoop(steps=50, lr=0.1)


def configured(**experiment: object) -> Config:
    """Return a configuration with these keys of [experiment], two of [adaptation] among them."""
    folds = experiment.pop("folds", 2)
    keys = [f"experiment.{key.replace('_', '-')}={_toml(value)}" for key, value in experiment.items()]
    return load(None, ["model.norm=batch", f"adaptation.folds={folds}", *keys])


def _toml(value: object) -> str:
    """Return lists, words, numbers and truths as TOML writes them."""
    return str(value).replace("'", '"').replace("True", "true").replace("False", "false")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return plans over some algorithms, hospitals, held-out hospitals, shots and folds."""
    hospitals = [f"site-{number}" for number in range(1, draw(st.integers(2, 6)) + 1)]
    config = configured(
        algorithms=draw(st.lists(st.sampled_from(sorted(ALGORITHMS)), min_size=1, unique=True)),
        held_out=draw(st.lists(st.sampled_from(hospitals), unique=True)),
        shots=draw(st.lists(st.sampled_from([0, 1, 5]), min_size=1, unique=True)),
        folds=draw(st.integers(0, 3)),
        publish=draw(st.booleans()),
    )
    return Plan(config, hospitals)


def all_trials(plan: Plan) -> list[tuple[Cell, Trial]]:
    """Return every trial that takes part in choosing a recipe, with the cell that it is chosen for."""
    return [
        (cell, trial) for cell, by in plan.choices().items() for trials in by.values() for trial in trials
    ]


@few
@given(plans())
def test_nothing_about_a_held_out_hospital_is_decided_with_its_cases(plan: Plan) -> None:
    """Recipes are tried elsewhere, on networks that saw neither hospital; verdicts never saw theirs."""
    for cell, trial in all_trials(plan):
        assert trial.site != cell.site
        assert trial.training is None or {trial.site, cell.site} <= set(trial.training.excluded)
    for cell, verdict in plan.verdicts({}).items():
        assert verdict.site == cell.site
        assert verdict.training is None or cell.site in verdict.training.excluded


@few
@given(plans())
def test_every_training_that_is_needed_runs_once(plan: Plan) -> None:
    """What trials and verdicts ask for, and what is published, is the list of trainings: no more, no less."""
    trials = [trial for _, trial in all_trials(plan)]
    needed = {trial.training for trial in (*trials, *plan.verdicts({}).values()) if trial.training}
    needed |= {plan.published} if plan.published else set()
    found = plan.trainings()
    assert len(found) == len(set(found))
    assert set(found) == needed


@few
@given(plans())
def test_every_candidate_is_tried_the_same(plan: Plan) -> None:
    """One trial per fold, at the same hospital in the same order for each recipe, with the cell's own K."""
    for cell, candidates in plan.choices().items():
        assert cell.shot > 0
        for recipe, trials in candidates.items():
            assert [trial.site for trial in trials] == plan.folds(cell.site)
            assert {(trial.recipe, trial.shot, trial.algorithm) for trial in trials} == {
                (recipe, cell.shot, cell.algorithm)
            }


@few
@given(plans())
def test_the_published_network_is_of_a_federation(plan: Plan) -> None:
    """Never the pooled bound or an untrained network, and it leaves nobody out."""
    if plan.published is None:
        federated = set(ALGORITHMS) - {"local-only", "pooled"}
        assert not plan.config.experiment.publish or not federated & set(plan.config.experiment.algorithms)
        return
    algorithm = ALGORITHMS[plan.published.algorithm]
    assert algorithm.local_update
    assert not algorithm.pooled
    assert plan.published.excluded == ()


def test_two_held_out_hospitals_share_the_training_without_both() -> None:
    """Three hospitals in two folds each: 3 trainings without one, 3 (not 6) without two, 1 published."""
    found = Plan(configured(algorithms=["reptile"], folds=2), ["a", "b", "c"]).trainings()
    assert sorted(len(training.excluded) for training in found) == [0, 1, 1, 1, 2, 2, 2]
    assert {training.excluded for training in found if len(training.excluded) == 2} == {
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    }


def test_without_shots_nothing_is_chosen_and_no_fold_is_trained() -> None:
    """K = 0 alone adapts nothing, so it needs no recipe."""
    plan = Plan(configured(algorithms=["reptile"], shots=[0], publish=False), ["a", "b", "c"])
    assert plan.choices() == {}
    assert [training.excluded for training in plan.trainings()] == [("a",), ("b",), ("c",)]


def test_two_hospitals_leave_no_fold() -> None:
    """Without both of two hospitals there is nobody to train on: recipes are the first of each list."""
    plan = Plan(configured(algorithms=["reptile"]), ["a", "b"])
    verdict = plan.verdicts({})[Cell("reptile", "a", 5)]
    first = plan.config.adaptation
    assert plan.folds("a") == []
    assert verdict.recipe is not None
    assert (verdict.recipe.steps, verdict.recipe.lr) == (first.inner_steps[0], first.inner_lrs[0])


def test_an_unknown_held_out_hospital_is_named_with_those_there_are() -> None:
    """The message is enough to mend the configuration."""
    plan = Plan(configured(held_out=["sight-1"]), ["site-1", "site-2"])
    with pytest.raises(ConfigError, match=r"held-out names sight-1.*there are site-1, site-2"):
        plan.trainings()


@pytest.mark.parametrize("hospitals", [[], ["alone"]])
def test_one_hospital_cannot_be_left_out(hospitals: list[str]) -> None:
    """Leaving one out needs another one to learn from."""
    with pytest.raises(ConfigError, match="at least two"):
        Plan(configured(), hospitals).trainings()


def test_an_untrained_network_always_adapts_and_moves_whole() -> None:
    """Not adapting is a candidate for what was trained, and for nothing else."""
    plan = Plan(load(None, ['adaptation.scopes=["adapter"]']), ["a", "b", "c"])
    assert plan.candidates("reptile")[0] is None
    untrained = plan.candidates("local-only")
    assert all(recipe is not None and recipe.scope == "all" for recipe in untrained)
    assert len(plan.candidates("reptile")) == len(untrained) + 1


def test_the_pooled_bound_borrows_the_headliners_recipe() -> None:
    """It chooses nothing and trains no fold; K = 0 has no recipe whoever chose."""
    plan = Plan(configured(algorithms=["pooled", "fedavg", "reptile"], shots=[0, 5]), ["a", "b", "c"])
    recipes: dict[Cell, Recipe] = {
        Cell("fedavg", "a", 5): BOLD,
        Cell("reptile", "a", 5): GENTLE,
        Cell("fedavg", "b", 5): None,
    }
    verdicts = plan.verdicts(recipes)
    assert plan.headliner == "fedavg"
    assert verdicts[Cell("pooled", "a", 5)].recipe == BOLD
    assert verdicts[Cell("pooled", "b", 5)].recipe is None
    assert verdicts[Cell("reptile", "a", 5)].recipe == GENTLE
    assert verdicts[Cell("pooled", "a", 0)].recipe is None
    assert not any(cell.algorithm == "pooled" for cell in plan.choices())
    assert all(len(one.excluded) == 1 for one in plan.trainings() if one.algorithm == "pooled")


def chosen(scores: dict[Recipe, list[list[float] | None]]) -> Recipe:
    """Return the choice among recipes with these scores `[fold][draw]`."""
    trials = {
        recipe: [
            Trial("reptile", Training("reptile", ("a", f"b{k}")), f"b{k}", 5, recipe)
            for k, _ in enumerate(by)
        ]
        for recipe, by in scores.items()
    }
    known: dict[Trial, Scores | None] = {
        trial: None if values is None else np.array(values)
        for recipe, by in scores.items()
        for trial, values in zip(trials[recipe], by, strict=True)
    }
    return choose(trials, known)


def test_a_sure_gain_is_taken() -> None:
    """Gains .1 and .1: mean .1, standard error 0."""
    assert chosen({None: [[0.6, 0.6]], GENTLE: [[0.7, 0.7]]}) == GENTLE


def test_a_gain_within_its_standard_error_is_not() -> None:
    """Gains .3 and -.1: mean .1, standard deviation .2, standard error .2 / sqrt(2) = .141 > .1."""
    assert chosen({None: [[0.6, 0.6]], GENTLE: [[0.9, 0.5]]}) is None


def test_draws_are_compared_one_by_one() -> None:
    """Scores vary by .8 from draw to draw, the gain never: it is as sure as can be."""
    assert chosen({None: [[0.1, 0.9]], GENTLE: [[0.15, 0.95]]}) == GENTLE


def test_the_surest_gain_wins_over_the_largest() -> None:
    """BOLD: gains .3, .0, mean .15, error .15 / sqrt(2) = .106, sure .044; GENTLE: a steady .05."""
    assert chosen({None: [[0.6, 0.6]], BOLD: [[0.9, 0.6]], GENTLE: [[0.65, 0.65]]}) == GENTLE


def test_folds_count_together_and_one_that_could_not_be_tried_does_not() -> None:
    """The second fold has no scores; the others' gains .2 and .1 decide: mean .15, error .05 / sqrt(2)."""
    assert chosen({None: [[0.5], None, [0.5]], GENTLE: [[0.7], None, [0.6]]}) == GENTLE


def test_where_nothing_could_be_tried_the_first_stands() -> None:
    """No score, no gain: not adapting, or for an untrained network the first recipe."""
    assert chosen({None: [None], GENTLE: [None]}) is None
    assert chosen({GENTLE: [None], BOLD: [None]}) == GENTLE


@pytest.mark.parametrize(("shots", "folds", "away"), [([1], 1, 2), ([1], 0, 1), ([0], 2, 1), ([], 2, 0)])
def test_no_training_sums_over_too_few(shots: list[int], folds: int, away: int) -> None:
    """A held-out hospital and a fold are away at once; pooled needs no sum."""
    config = configured(algorithms=["pooled", "reptile"], shots=shots, folds=folds)
    names = [f"site-{number}" for number in range(3 + away)]
    Plan(config, names).check_sums(3)
    if away:
        with pytest.raises(
            ConfigError, match=f"holding {away} of {2 + away} out .* Have {3 + away} hospitals"
        ):
            Plan(config, names[1:]).check_sums(3)
