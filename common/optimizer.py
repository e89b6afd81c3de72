"""The inner optimiser: SGD, or Adam with beta1 = 0 (arXiv 1803.02999, appendix A).

`adam` starts afresh in every inner loop. `adam-kept` resets the weights between tasks and not Adam's second
moment, as Reptile's published code does: a task that is solved already then takes small steps, not full ones.
In a federation that moment belongs to the hospital whose gradients it is made of: it stays there from task to
task and from round to round, and nothing of it crosses the wire.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS = (0.0, 0.999)
Memory = dict[str, Tensor]
"""What a site remembers of Adam: of each parameter its second moment and the number of steps behind it."""


def optimizer_of(
    parameters: Mapping[str, Tensor], name: str, lr: float, memory: Memory
) -> torch.optim.Optimizer:
    """Return the optimiser over `parameters`; `adam-kept` goes on from `memory` and writes on in it."""
    if name == "sgd":
        return torch.optim.SGD(parameters.values(), lr)
    adam = torch.optim.Adam(parameters.values(), lr, betas=BETAS)
    if name == "adam-kept":
        for place, parameter in parameters.items():
            adam.state[parameter] = _recalled(memory, place, parameter)
    return adam


def _recalled(memory: Memory, place: str, parameter: Tensor) -> dict[str, Tensor]:
    """Return Adam's state of one parameter, on the memory's tensors; afresh if of another shape."""
    steps, moment = f"{place}.steps", f"{place}.second-moment"
    known = moment in memory and memory[moment].shape == parameter.shape
    if not known:
        memory[steps] = torch.zeros(())
    second = torch.empty_like(parameter).copy_(memory[moment]) if known else torch.zeros_like(parameter)
    memory[moment] = second
    return {"step": memory[steps], "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": second}
