"""Episodes: K counts patients, support and query share nobody, and a seed says everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.episodes import episodes, few_cases
from common.cases import Cases
from common.errors import DataError
from common.sections import Training
from common.seeds import Draws

few = settings(deadline=None, max_examples=60)
"""Milliseconds each; a busy machine may take longer."""
CLASSES = ("normal", "effusion", "nodule")


def hospital(images: list[tuple[int, int]]) -> Cases:
    """Return one case per (patient, label); its input holds the case's own number and its label."""
    patients, labels = (torch.tensor(column) for column in zip(*images, strict=True))
    own = torch.arange(len(images))
    return Cases(torch.stack([own, labels], dim=1).float(), labels, patients)


def images(patients: int, classes: int = len(CLASSES)) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Return lists of (patient, label), with several images of a patient, also in several classes."""
    one = st.tuples(st.integers(0, patients - 1), st.integers(0, classes - 1))
    return st.lists(one, min_size=1, max_size=40)


def draws(seed: int = 0) -> Draws:
    """Return draws of its own."""
    return Draws.of_seed(seed)


@few
@given(images(patients=12), st.integers(1, 3), st.integers(0, 2**32))
def test_an_episode_counts_patients(rows: list[tuple[int, int]], shot: int, seed: int) -> None:
    """Support has `shot` different patients per class, query at most as many, and nobody is in both."""
    cases = hospital(rows)
    if min(cases.per_class(len(CLASSES))) < shot:
        with pytest.raises(DataError):
            episodes(cases, CLASSES, Training(shot=shot), draws(seed))
        return
    (episode,) = episodes(cases, CLASSES, Training(shot=shot), draws(seed))
    assert not set(episode.support.patients.tolist()) & set(episode.query.patients.tolist())
    for label in range(len(CLASSES)):
        chosen = episode.support.patients[episode.support.labels == label].tolist()
        asked = episode.query.patients[episode.query.labels == label].tolist()
        assert len(set(chosen)) == len(chosen) == shot
        assert len(set(asked)) == len(asked) <= shot


@few
@given(images(patients=12), st.integers(1, 3), st.integers(0, 2**32))
def test_few_cases_are_cases_of_the_hospital(rows: list[tuple[int, int]], shot: int, seed: int) -> None:
    """The indices stand class after class, each of its own class and none twice."""
    cases = hospital(rows)
    shot = min(shot, *cases.per_class(len(CLASSES)))
    index = few_cases(cases, classes=len(CLASSES), shot=shot, draws=draws(seed))
    assert cases.labels[index].tolist() == [label for label in range(len(CLASSES)) for _ in range(shot)]
    assert len(set(index.tolist())) == len(index)


@few
@given(st.integers(2, 3), st.integers(1, 2), st.integers(0, 2**32))
def test_a_way_episode_relabels_its_classes(way: int, shot: int, seed: int) -> None:
    """Each drawn class has one new label from 0 to way - 1, the same in support and query."""
    cases = hospital([(patient, label) for label in range(3) for patient in range(5 * label, 5 * label + 5)])
    (episode,) = episodes(cases, CLASSES, Training(way=way, shot=shot), draws(seed))
    for part in (episode.support, episode.query):
        assert sorted(part.labels.tolist()) == [label for label in range(way) for _ in range(shot)]
    pairs = {
        (int(own), int(new))
        for part in (episode.support, episode.query)
        for own, new in zip(part.inputs[:, 1], part.labels, strict=True)
    }
    assert len(pairs) == way


def test_a_way_episode_draws_only_classes_that_have_the_patients() -> None:
    """Of three classes, the one with a single patient never takes part in a 2-way 2-shot episode."""
    cases = hospital([(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)])
    for seed in range(20):
        (episode,) = episodes(cases, CLASSES, Training(way=2, shot=2), draws(seed))
        assert set(episode.support.inputs[:, 1].tolist()) == {0.0, 2.0}


def test_a_class_of_a_way_episode_may_lie_above_every_label_present() -> None:
    """A hospital without the last class relabels all the same."""
    cases = hospital([(0, 0), (1, 1)])
    (episode,) = episodes(cases, CLASSES, Training(way=2, shot=1), draws())
    assert sorted(episode.support.labels.tolist()) == [0, 1]


def test_the_same_seed_draws_the_same_episodes() -> None:
    """Equal to the last case for one seed, different for another, and different within one round."""
    cases = hospital([(patient, patient % 3) for patient in range(60)])
    training = Training(shot=3, episodes=4)

    def drawn(seed: int) -> list[list[float]]:
        found = episodes(cases, CLASSES, training, draws(seed))
        return [torch.cat([one.support.inputs[:, 0], one.query.inputs[:, 0]]).tolist() for one in found]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({tuple(one) for one in drawn(1)}) == 4


def test_too_few_patients_of_a_class_are_said_without_a_count() -> None:
    """Three images of two patients are two, and three are needed."""
    enough = [(patient, label) for label in (0, 2) for patient in range(10 * label, 10 * label + 3)]
    cases = hospital([*enough, (100, 1), (100, 1), (101, 1)])
    with pytest.raises(DataError, match=r"3 patients per class need 3 classes.*fewer.*training\.shot"):
        episodes(cases, CLASSES, Training(shot=3), draws())


def test_too_few_classes_for_way_are_said() -> None:
    """Two of the three classes that 3-way needs have two patients."""
    cases = hospital([(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)])
    with pytest.raises(
        DataError, match=r"2 patients per class need 3 classes with so many, and here are fewer"
    ):
        episodes(cases, CLASSES, Training(way=3, shot=2), draws())


def test_a_hospital_of_one_class_can_train_ordinarily_but_not_in_shots() -> None:
    """With `shot = 0` every episode is the whole hospital; with a shot the missing class is named."""
    cases = hospital([(0, 0), (1, 0), (2, 0)])
    found = episodes(cases, CLASSES, Training(episodes=2), draws())
    assert len(found) == 2
    assert all(one.support is cases and one.query is cases for one in found)
    with pytest.raises(DataError, match="here are fewer"):
        episodes(cases, CLASSES, Training(shot=1), draws())


@few
@given(images(patients=12), st.integers(0, 2**32))
def test_halves_deal_patients_out(rows: list[tuple[int, int]], seed: int) -> None:
    """Every case is in one half, no patient in both, and a first image's class is always in the support."""
    cases = hospital(rows)
    first = dict(reversed(rows))
    if len(set(first.values())) == len(first):
        with pytest.raises(DataError, match="two patients of one class"):
            episodes(cases, CLASSES, Training(), draws(seed), halves=True)
        return
    (episode,) = episodes(cases, CLASSES, Training(), draws(seed), halves=True)
    dealt = torch.cat([episode.support.inputs[:, 0], episode.query.inputs[:, 0]])
    assert sorted(dealt.tolist()) == list(range(len(rows)))
    assert not set(episode.support.patients.tolist()) & set(episode.query.patients.tolist())
    assert {first[patient] for patient in episode.support.patients.tolist()} == set(first.values())


def test_a_query_may_ask_more_patients_than_the_shot() -> None:
    """One patient per class to learn from, four to be asked about; of the class with three, two are left."""
    cases = hospital([(0, 0), (1, 0), (2, 0), *((patient, 1) for patient in range(3, 10))])
    (episode,) = episodes(cases, CLASSES[:2], Training(shot=1, query=4), draws())
    assert torch.bincount(episode.support.labels).tolist() == [1, 1]
    assert torch.bincount(episode.query.labels).tolist() == [2, 4]
