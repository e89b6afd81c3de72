"""Labelled cases as tensors: what every reader yields and every algorithm learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Cases:
    """Labelled cases of one hospital, in a fixed order.

    `inputs` may be memory-mapped and read-only: index it, never write to it. `patients` numbers the
    hospital's patients from 0 upwards; it is an index, not an identifier, and means nothing outside
    this object's hospital.
    """

    inputs: Float[Tensor, "case *feature"]
    labels: Shaped[Tensor, "case *place"]
    """A class, a number, a vector of findings or a mask for each case (see `common.tasks`)."""
    patients: Int[Tensor, "case"]

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.labels) == len(self.patients):
            raise ValueError(
                "inputs, labels and patients must have one row per case; "
                f"they have {len(self.inputs)}, {len(self.labels)} and {len(self.patients)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Int[Tensor, "chosen"]) -> Cases:
        """Return the cases at `index`, copied out of any memory map."""
        return Cases(self.inputs[index], self.labels[index], self.patients[index])

    @property
    def shares(self) -> Float[Tensor, "case"] | None:
        """How much each case weighs where every patient weighs the same; None: they have one case each."""
        patients, place, images = torch.unique(self.patients, return_inverse=True, return_counts=True)
        return None if len(patients) == len(self) else 1 / (images[place] * len(patients)).double()

    @property
    def strata(self) -> Int[Tensor, "case"]:
        """The class of each case, over which draws are balanced; 0 throughout where labels are no classes."""
        if self.labels.ndim == 1 and not self.labels.is_floating_point():
            return self.labels
        return torch.zeros(len(self), dtype=torch.int64)

    def per_class(self, classes: int) -> list[int]:
        """Return how many different patients each class has: K-shot counts patients, not images."""
        strata = self.strata
        return [len(torch.unique(self.patients[strata == label])) for label in range(classes)]


@dataclass(frozen=True)
class Episode:
    """One task: cases to adapt on, and other patients' cases to judge the adaptation by."""

    support: Cases
    query: Cases


def concatenate(parts: Sequence[Cases], offsets: Sequence[int] | None = None) -> Cases:
    """Return all parts as one; patients of different parts stay different.

    `offsets`, one a part, are added to the parts' patient numbers where the caller numbers them itself.
    """
    if offsets is None:
        sizes = (int(part.patients.max()) + 1 if len(part) else 0 for part in parts[:-1])
        offsets = list(accumulate(sizes, initial=0))
    return Cases(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.patients + offset for part, offset in zip(parts, offsets, strict=True)]),
    )
