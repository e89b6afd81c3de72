"""Adapting phi to a hospital's own K cases without making it worse.

The recipe (what moves, steps, learning rate) was chosen on other hospitals. What these K cases can
still decide is how far to go: cross-validation within the support weighs the adapted predictions
against phi's own. Where it shows no gain, phi is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.algorithms.algorithm import Adapt, Predictor
from common.cases import Cases
from common.inner_loop import InnerLoop
from common.learner import Learner
from common.seeds import Draws
from common.weights import Weights

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of the adapted logits may be mixed into phi's own; 0 is zero-shot."""
FOLDS = 3
"""Folds of the cross-validation within the support, where each class has as many patients."""


@dataclass(frozen=True)
class Adapted:
    """A model of this hospital's own."""

    before: Predictor
    """Phi, unadapted."""
    after: Predictor
    share: float
    """How much of the adapted logits is in its predictions; 0: it is phi, unadapted."""

    def predict(self, inputs: Tensor, *, before: Tensor | None = None) -> Tensor:
        """Return the logits of `inputs`; `before` are phi's own, where they are at hand already."""
        if self.share == 1:
            return self.after(inputs)
        unadapted = self.before(inputs) if before is None else before
        return unadapted if self.share == 0 else _mix(self.share, unadapted, self.after(inputs))


def adapt_safely(
    adapt: Adapt,
    learner: Learner,
    phi: Weights,
    support: Cases,
    recipe: InnerLoop,
    draws: Draws,
) -> Adapted:
    """Return phi adapted to `support`, as far as the support itself shows a gain.

    The share is the one with the smallest cross-validated log loss; a tie goes to the smaller. With one
    patient per class nothing can be held out: then the recipe alone decides.
    """

    def attempt(cases: Cases) -> Predictor:
        return adapt(learner, phi, cases, recipe, draws)

    before, after = partial(learner.logits, phi), attempt(support)
    losses = torch.zeros(len(SHARES), dtype=torch.float64)
    folds = list(_folds(support, draws))
    for learn, check in folds:
        predict, held = attempt(support.at(learn)), support.at(check)
        unadapted, adapted = before(held.inputs), predict(held.inputs)
        for place, share in enumerate(SHARES):
            loss = learner.task.loss(_mix(share, unadapted, adapted), held.labels)
            losses[place] += len(held) * loss.double()
    return Adapted(before, after, SHARES[int(losses.argmin())] if folds else 1.0)


def _folds(support: Cases, draws: Draws) -> Iterator[tuple[Int[Tensor, "learn"], Int[Tensor, "check"]]]:
    """Yield (learn, check) index pairs, patients apart, every class spread evenly over the folds."""
    strata = support.strata
    counts = [int((strata == label).sum()) for label in torch.unique(strata)]
    folds = min(FOLDS, *counts) if counts else 0
    if folds < 2:
        return
    fold_of = torch.empty(len(support), dtype=torch.int64)
    for label in torch.unique(strata):
        members = torch.nonzero(strata == label)[:, 0]
        fold_of[members[draws.permutation(len(members))]] = torch.arange(len(members)) % folds
    for fold in range(folds):
        check = torch.nonzero(fold_of == fold)[:, 0]
        apart = ~torch.isin(support.patients, support.patients[check])
        if apart.any():
            yield torch.nonzero(apart)[:, 0], check


def _mix(
    share: float, before: Float[Tensor, "case output *place"], after: Float[Tensor, "case output *place"]
) -> Float[Tensor, "case output *place"]:
    return before.lerp(after, share)
