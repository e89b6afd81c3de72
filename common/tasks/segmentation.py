"""Segmentation: every pixel is of one class, the first of which is background.

Two classes share one logit a pixel, more have one each. The loss is Dice, of MONAI, plus cross-entropy.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.sections import Task
from common.tasks import classification
from common.tasks.classification import outputs
from common.tasks.means import mean_of_known, weighted_mean_of_known
from common.tasks.task import Metrics, TaskKind

TITLES = {"dice": "Dice", "hd95": "HD95 in pixels"}
LOWER_IS_BETTER = frozenset({"hd95"})
PERCENTILE = 95.0


def kind(task: Task) -> TaskKind:
    """Return segmentation as functions."""
    return TaskKind(
        outputs=outputs,
        head=partial(nn.Conv2d, kernel_size=1),
        losses=losses,
        predictions=predictions,
        metrics=partial(metrics, classes=len(task.classes)),
        titles=TITLES,
        lower_is_better=LOWER_IS_BETTER,
        maps=True,
    )


def losses(
    logits: Float[Tensor, "case output height width"], labels: Num[Tensor, "case height width"]
) -> Float[Tensor, "case"]:
    """Return each case's 1 - mean soft Dice of the foreground classes, plus its cross-entropy in nats."""
    from monai.losses.dice import DiceLoss

    single = logits.shape[1] == 1
    criterion = DiceLoss(
        include_background=single,
        to_onehot_y=not single,
        sigmoid=single,
        softmax=not single,
        reduction="none",
    )
    overlap: Tensor = criterion(logits, labels[:, None].to(logits.dtype)).flatten(1).mean(1)
    return overlap + classification.losses(_by_pixel(logits), labels.long().flatten()).view(
        len(labels), -1
    ).mean(1)


def _by_pixel(logits: Float[Tensor, "case output height width"]) -> Float[Tensor, "pixel output"]:
    """Return every pixel as a case of its own."""
    return logits.permute(0, 2, 3, 1).flatten(0, 2)


def predictions(
    logits: Float[Tensor, "case output height width"],
) -> Shaped[Tensor, "case height width"]:
    """Return each pixel's likeliest class, as uint8."""
    single = logits.shape[1] == 1
    return ((logits[:, 0] > 0) if single else logits.argmax(1)).to(torch.uint8)


def metrics(
    predicted: NDArray[Any], labels: NDArray[Any], weights: NDArray[np.float64], *, classes: int
) -> Metrics:
    """Return each metric under each row of case weights: means over images of means over foreground classes.

    Dice is 1 where a class is neither there nor predicted. HD95, the 95th percentile of the distances
    between the two outlines (the larger of both directions), is in pixels of the network's image; the
    image's diagonal where one outline exists alone, and not counted where none does.

    Args:
        predicted: `[case, height, width]`, classes.
        labels: the same of the truth.
        weights: `[replicate, case]`, how often each case counts.
        classes: how many the task has, background included; Dice is over all of them but that.

    """
    found = [_of_image(one, truth, classes) for one, truth in zip(predicted, labels, strict=True)]
    return {name: weighted_mean_of_known(np.array([one[name] for one in found]), weights) for name in TITLES}


def _of_image(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> dict[str, float]:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    ours, theirs = (_one_hot(mask, classes) for mask in (predicted, truth))
    dice = compute_dice(ours, theirs, include_background=False, ignore_empty=False)[0]
    here, there = (mask[0, 1:].flatten(1).any(1) for mask in (ours, theirs))
    distance = torch.full((classes - 1,), float("nan"))
    distance[here != there] = float(np.hypot(*truth.shape))
    if (here & there).any():
        both = torch.cat([torch.tensor([True]), here & there])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own arguments
            apart = compute_hausdorff_distance(
                ours[:, both], theirs[:, both], include_background=False, percentile=PERCENTILE
            )
        distance[here & there] = apart[0].float()
    return {"dice": float(dice.mean()), "hd95": float(mean_of_known(distance.double().numpy()[None])[0])}


def _one_hot(mask: NDArray[Any], classes: int) -> Float[Tensor, "1 klass height width"]:
    places = torch.from_numpy(np.ascontiguousarray(mask)).long()
    return functional.one_hot(places, classes).permute(2, 0, 1)[None].float()
