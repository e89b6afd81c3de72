"""Gradient inversion: images whose gradient would be what was seen.

Cosine matching as in Geiping et al. 2020 ("Inverting Gradients", NeurIPS, arXiv 2003.14053), of the last
layer's gradient, which is the features of the images times the error of their prediction: for one image it
gives away the features exactly (there, proposition 3.1; Phong et al. 2018, IEEE TIFS 13). Through four
max-poolings whole gradients have a rugged landscape in which matching stalls; features are continuous in
the image. A prior over images takes the place of total variation, as in Jeon et al. 2021 ("Gradient
Inversion with Generative Image Prior", NeurIPS, arXiv 2110.14962); here a linear one: principal components
of images that the attacker has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from common.learner import Learner
from common.weights import Weights, unpack
from simulation.attack.likeness import Images, standardise

Vector = Float[Tensor, "parameter"]
LAST = ("adapter.weight", "adapter.bias")


@dataclass(frozen=True)
class Prior:
    """Images as an attacker expects them: `mean`, and principal directions one standard deviation long."""

    shape: tuple[int, ...]
    mean: Float[Tensor, "pixel"]
    directions: Float[Tensor, "direction pixel"]

    @classmethod
    def of(cls, images: Images, directions: int) -> Prior:
        """Return the prior of at least two images, with at most so many directions as they span."""
        flat = standardise(images).flatten(1)
        mean = flat.mean(0)
        _, sizes, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        kept = min(directions, len(flat) - 1)
        return cls(tuple(images.shape[1:]), mean, axes[:kept] * (sizes[:kept, None] / len(flat) ** 0.5))

    def images(self, codes: Float[Tensor, "image direction"]) -> Images:
        """Return the images of some codes."""
        return (self.mean + codes @ self.directions).view(-1, *self.shape)


@dataclass(frozen=True)
class Puzzle:
    """Deltas of the same images from several phis, and the images' labels, which the attacker knows."""

    labels: Int[Tensor, "image"]
    deltas: Sequence[Vector]
    """The first of them belongs to the first phi, and so on; there may be fewer than phis."""


def invert(
    learner: Learner, phis: Sequence[Weights], puzzles: Sequence[Puzzle], prior: Prior, *, iterations: int
) -> list[Images]:
    """Return each puzzle's images; all are solved at once by Adam, from the prior's mean.

    Needs a network that treats every image by itself (`norm = "group"`).
    """
    sizes = [len(puzzle.labels) for puzzle in puzzles]
    # Equal starts would stay equal among images of one label; a small spread lets them part.
    places = torch.linspace(-0.1, 0.1, max(sizes)).tolist()
    codes = torch.cat([torch.tensor(places[:size]) for size in sizes])[:, None]
    codes = codes.repeat(1, len(prior.directions)).requires_grad_()
    targets = [[_last_gradient(delta, phis[0]) for delta in puzzle.deltas] for puzzle in puzzles]
    optimizer = torch.optim.Adam([codes], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        images = prior.images(codes)
        slope = _slope(learner, phis, puzzles, targets, images.detach())
        codes.grad = None
        images.backward(slope)  # type: ignore[no-untyped-call]
        assert codes.grad is not None  # noqa: S101 - every image depends on its code
        codes.grad += 2 * PULL / codes.shape[1] * codes.detach()
        optimizer.step()
        schedule.step()
    return list(torch.split(prior.images(codes.detach()), sizes))


RATE = 0.1
"""Adam's step, in the prior's standard deviations; annealed to nothing."""
PULL = 1e-3
"""Weight of the codes' mean square, which draws towards the prior's mean."""


def _slope(
    learner: Learner,
    phis: Sequence[Weights],
    puzzles: Sequence[Puzzle],
    targets: Sequence[Sequence[Vector]],
    images: Images,
) -> Images:
    """Return the derivative of all puzzles' mismatch by their images, each averaged over its deltas."""
    images = images.requires_grad_()
    slope = torch.zeros_like(images)
    for place, phi in enumerate(phis):
        learner.load(phi)
        features = torch.split(learner.network.backbone(images), [len(one.labels) for one in puzzles])
        mismatch = [
            _mismatch(learner, part, puzzle.labels, target[place]) / len(target)
            for part, puzzle, target in zip(features, puzzles, targets, strict=True)
            if place < len(target)
        ]
        slope += torch.autograd.grad(torch.stack(mismatch).sum(), images)[0]
    return slope


def _mismatch(
    learner: Learner,
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    target: Vector,
) -> Float[Tensor, ""]:
    """Return 1 less the cosine of the last layer's gradient, at these features, with the one seen."""
    outputs = learner.network.adapter(features)
    (error,) = torch.autograd.grad(learner.task.loss(outputs, labels), outputs, create_graph=True)
    gradient = torch.cat([(error.T @ features).reshape(-1), error.sum(0)])
    return 1 - functional.cosine_similarity(gradient, target, dim=0)


def _last_gradient(delta: Vector, like: Weights) -> Vector:
    """Return the part of a delta that the last layer made, as the gradient that one SGD step went down."""
    parts = unpack(delta, like)
    return -torch.cat([parts[name].reshape(-1) for name in LAST])
