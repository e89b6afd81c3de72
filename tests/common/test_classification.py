"""Loss and metrics against scikit-learn and against hand-derived numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from common.tasks import classification


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(6, 60))
def test_metrics_agree_with_scikit_learn(seed: int, classes: int, cases: int) -> None:
    """Plain metrics, and bootstrap counts as sample weights, equal scikit-learn's."""
    chance = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), chance.integers(0, classes, cases - classes)])
    probability = np.round(chance.dirichlet(np.ones(classes), cases), 2) + 1e-6  # rounded: ties occur
    probability /= probability.sum(1, keepdims=True)
    counts = 1.0 + chance.integers(0, 3, cases)
    ours = classification.metrics(probability, labels, np.stack([np.ones(cases), counts]))
    for row, weight in enumerate((None, counts)):
        predicted = probability.argmax(1)
        assert ours["accuracy"][row] == pytest.approx(accuracy_score(labels, predicted, sample_weight=weight))
        assert ours["balanced-accuracy"][row] == pytest.approx(
            balanced_accuracy_score(labels, predicted, sample_weight=weight)
        )
        assert ours["log-loss"][row] == pytest.approx(log_loss(labels, probability, sample_weight=weight))
        if classes == 2:
            score = probability[:, 1]
            assert ours["auroc"][row] == pytest.approx(roc_auc_score(labels, score, sample_weight=weight))
            # scikit-learn's binary Brier score is half the two-class sum of squares.
            assert ours["brier"][row] == pytest.approx(
                2 * brier_score_loss(labels, score, sample_weight=weight)
            )
        elif weight is None:
            assert ours["auroc"][row] == pytest.approx(roc_auc_score(labels, probability, multi_class="ovr"))


def test_calibration_error_of_a_known_case() -> None:
    """Two cases of confidence 0.8, one right: |0.5 - 0.8| = 0.3; two of 1.0, both right: 0. Mean 0.15."""
    probability = np.array([[0.2, 0.8], [0.2, 0.8], [0.0, 1.0], [1.0, 0.0]])
    labels = np.array([1, 0, 1, 0])
    assert classification.metrics(probability, labels, np.ones((1, 4)))["ece"][0] == pytest.approx(0.15)


def test_a_replicate_without_a_class_is_nan_for_auroc_alone() -> None:
    """AUROC needs both classes; accuracy does not."""
    probability = np.array([[0.2, 0.8], [0.6, 0.4]])
    found = classification.metrics(probability, np.array([1, 0]), np.array([[2.0, 0.0]]))
    assert np.isnan(found["auroc"][0])
    assert found["accuracy"][0] == 1.0
    assert found["balanced-accuracy"][0] == 1.0


def test_two_classes_share_one_logit() -> None:
    """One logit z means probabilities (1 - sigmoid(z), sigmoid(z)), and its loss is theirs."""
    logits, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([1, 0])
    probability = classification.probabilities(logits)
    assert probability.sum(1).tolist() == pytest.approx([1.0, 1.0])
    expected = -(probability[0, 1].log() + probability[1, 0].log()) / 2
    assert classification.losses(logits, labels).mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert classification.outputs(2) == 1
    assert classification.outputs(3) == 3
