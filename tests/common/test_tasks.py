"""Each kind of task: its loss and its metrics against their definitions, unknown labels left out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score

from common.config import load
from common.errors import ConfigError
from common.sections import Task
from common.tasks import KINDS, TITLES, kind_of
from common.tasks.multi_label import UNKNOWN

ONCE = np.ones((1, 6))


def kind(name: str, **over: object) -> Task:
    """Return a task of that kind."""
    classes = () if name == "regression" else ("a", "b", "c")
    return Task.model_validate({"kind": name, "classes": classes, **over})


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_measures_what_it_names(name: str) -> None:
    """Every metric has a title, and is a number under each row of weights."""
    task = kind_of(kind(name))
    shape = (6, task.outputs(3), 8, 8) if name == "segmentation" else (6, task.outputs(1 + 2 * task.by_class))
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = {
        "classification": torch.tensor([0, 1, 2, 0, 1, 2]),
        "multi-label": torch.tensor([[0], [1], [0], [1], [1], [0]]),
        "regression": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "segmentation": torch.arange(6 * 64).view(6, 8, 8) % 3,
    }[name]
    weights = np.array([[1.0] * 6, [2.0, 1, 0, 1, 1, 1]])
    found = task.metrics(task.predictions(outputs).numpy(), labels.numpy(), weights)
    assert found.keys() == task.titles.keys() <= TITLES.keys()
    assert task.headline in found
    assert all(values.shape == (2,) and np.isfinite(values).all() for values in found.values())
    assert math.isfinite(float(task.loss(outputs, labels)))


def test_regression_is_told_in_the_labels_own_unit() -> None:
    """What the network puts out is standardised; errors are years, as scikit-learn counts them."""
    task = kind_of(kind("regression", center=50.0, spread=20.0))
    outputs = torch.tensor([[0.5], [-1.0], [0.0], [1.0], [2.0], [0.1]])
    years = torch.tensor([58.0, 31.0, 50.0, 75.0, 80.0, 40.0])
    predicted = task.predictions(outputs).numpy()
    assert predicted.tolist() == pytest.approx([60, 30, 50, 70, 90, 52])
    found = task.metrics(predicted, years.numpy(), ONCE)
    assert found["mae"][0] == pytest.approx(mean_absolute_error(years, predicted))
    assert found["r2"][0] == pytest.approx(r2_score(years, predicted))
    assert found["rmse"][0] == pytest.approx(np.sqrt(((predicted - years.numpy()) ** 2).mean()))
    assert float(task.loss(outputs, years)) == pytest.approx(found["rmse"][0] ** 2 / 400, rel=1e-5)
    assert task.goodness("mae", found["mae"])[0] < 0 < task.goodness("r2", found["r2"])[0]


def test_a_network_that_diverged_is_far_off_and_no_more() -> None:
    """Its metrics are numbers that can be sent and averaged."""
    task = kind_of(kind("regression", center=50.0, spread=20.0))
    predicted = task.predictions(torch.full((6, 1), -1e30)).numpy()
    found = task.metrics(predicted, np.arange(6) + 40.0, ONCE)
    assert found["mae"][0] == pytest.approx(20_000, rel=1e-2)
    assert all(np.isfinite(values).all() for values in found.values())


def test_r2_of_equal_labels_is_unknown() -> None:
    """Without variance there is nothing to explain."""
    task = kind_of(kind("regression"))
    assert np.isnan(task.metrics(np.zeros(6), np.ones(6), ONCE)["r2"][0])


def test_unknown_findings_count_nowhere() -> None:
    """Neither loss, nor gradient, nor any metric depends on what is predicted where the label is unknown."""
    task = kind_of(kind("multi-label"))
    labels = torch.tensor([[0, 1, -1], [1, 0, -1], [1, -1, -1], [0, 1, -1], [1, 0, -1], [0, -1, -1]])
    chance = torch.Generator().manual_seed(1)
    outputs = torch.randn((6, 3), generator=chance, requires_grad=True)
    loss = task.loss(outputs, labels)
    (slope,) = torch.autograd.grad(loss, outputs)
    assert (slope[labels == UNKNOWN] == 0).all()
    assert (slope[labels != UNKNOWN] != 0).all()
    known = labels != UNKNOWN
    bare = [
        torch.nn.functional.binary_cross_entropy_with_logits(given[there], told[there].float()).item()
        for given, told, there in zip(outputs, labels, known, strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(bare), rel=1e-6)
    other = torch.where(known, outputs, 7.0).detach()
    both = [
        task.metrics(task.predictions(x).numpy(), labels.numpy(), ONCE) for x in (outputs.detach(), other)
    ]
    assert both[0] == both[1]
    chances = task.predictions(outputs.detach()).numpy()
    one = [roc_auc_score(labels[known[:, k], k], chances[known[:, k].numpy(), k]) for k in (0, 1)]
    assert both[0]["auroc"][0] == pytest.approx(np.mean(one))
    assert task.loss(outputs.detach(), torch.full_like(labels, UNKNOWN)).item() == 0


def outline_distances(one: np.ndarray, other: np.ndarray) -> float:
    """Return the larger of both directions' 95th percentile of distances between outlines."""
    edges = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (one, other)]
    apart = cdist(*edges)
    return max(float(np.percentile(apart.min(axis), 95)) for axis in (0, 1))


def test_masks_are_judged_by_overlap_and_by_their_outlines() -> None:
    """Dice and HD95 of rectangles, against their definitions; an outline alone is a diagonal away."""
    task = kind_of(Task(kind="segmentation", classes=("background", "vessel")))
    truth, predicted = np.zeros((6, 32, 32)), np.zeros((6, 32, 32))
    corners = [(4, 20), (6, 26), (8, 18)]
    for place, (low, high) in enumerate(corners):
        truth[place, low:high, 5:20] = 1
        predicted[place, low + 2 : high, 5:24] = 1
    truth[3, 3:9, 3:9] = 1
    predicted[4, 3:9, 3:9] = 1
    found = task.metrics(predicted, truth, np.eye(6))
    for place in range(3):
        ours, theirs = predicted[place] > 0, truth[place] > 0
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert found["dice"][place] == pytest.approx(dice)
        assert found["hd95"][place] == pytest.approx(outline_distances(ours, theirs))
    assert found["dice"][3:].tolist() == [0, 0, 1]
    assert found["hd95"][3:5].tolist() == pytest.approx([np.hypot(32, 32)] * 2)
    assert np.isnan(found["hd95"][5])


def test_a_better_mask_has_a_lower_loss() -> None:
    """From no idea over half right to right, with two classes and with three."""
    for classes in (2, 3):
        task = kind_of(Task(kind="segmentation", classes=("x", "y", "z")[:classes]))
        truth = torch.zeros((2, 16, 16), dtype=torch.int64)
        truth[:, 4:12, 4:12] = classes - 1
        right = torch.nn.functional.one_hot(truth, classes).permute(0, 3, 1, 2).float() * 8 - 4
        right = right[:, 1:] if classes == 2 else right
        losses = [float(task.loss(right * share, truth)) for share in (-1.0, 0.0, 0.5, 1.0)]
        assert all(before > after for before, after in pairwise(losses))
        assert (task.predictions(right) == truth).all()


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (['task.kind="regression"', 'task.classes=["a", "b"]'], "classes mean nothing to a regression"),
        (['task.kind="multi-label"', "task.classes=[]"], "multi-label needs classes"),
        (['task.kind="regression"', "task.own-classes=true"], "own-classes is about classification"),
        (['task.kind="regression"', "experiment.way=2"], "experiment.way is about classification"),
        (
            ['task.kind="regression"', 'experiment.algorithms=["protonet"]'],
            "protonet compares cases by their class",
        ),
        (['task.kind="regression"', "experiment.metric=dice"], "it has mae, rmse, r2"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(over: list[str], words: str) -> None:
    """The message names the key and what is to be done."""
    with pytest.raises(ConfigError, match=words):
        load(None, over)


def test_each_kind_leads_with_its_own_metric() -> None:
    """Unless the configuration says otherwise."""
    assert load(None, ['task.kind="regression"']).metric == "mae"
    assert load(None, ['task.kind="multi-label"']).metric == "auroc"
    assert load(None, ['task.kind="regression"', "experiment.metric=r2"]).metric == "r2"


def test_a_stray_pixel_of_another_class_changes_its_own_image_alone() -> None:
    """Dice is over the task's classes, not over those that happen to occur."""
    task = kind_of(Task(kind="segmentation", classes=("background", "artery", "vein")))
    truth, predicted = np.zeros((6, 16, 16)), np.zeros((6, 16, 16))
    truth[:, 4:8, 4:8] = 1
    predicted[:, 4:8, 6:10] = 1
    before = task.metrics(predicted, truth, np.eye(6))["dice"]
    predicted[0, 0, 0] = 2
    after = task.metrics(predicted, truth, np.eye(6))["dice"]
    assert after[0] < before[0]
    assert after[1:].tolist() == before[1:].tolist()
