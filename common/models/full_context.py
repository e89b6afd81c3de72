"""Full-context embeddings of Matching Networks (arXiv 1606.04080, appendix A): a case seen with its support.

For the support, a bidirectional LSTM over its features g' in their order, with a way past it:

    g_i = forward_i + backward_i + g'_i

For a query, `STEPS` of an LSTM that reads its features f' and attends to the support:

    h_k = LSTM(f', h_{k-1} + r_{k-1}) + f',   r_k = sum over i of softmax over i of (h_k . g_i) times g_i

The paper joins h and r end to end; their sum keeps the state as wide as the features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 3


class FullContext(nn.Module):
    """From features of support and query to their full-context embeddings, end to end."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.onwards = nn.LSTMCell(features, features)
        self.backwards = nn.LSTMCell(features, features)
        self.attending = nn.LSTMCell(features, features)

    def forward(
        self, known: Float[Tensor, "shot feature"], asked: Float[Tensor, "case feature"]
    ) -> Float[Tensor, "both feature"]:
        """Return the support's embeddings, then the query's."""
        count = len(known)
        there = _read(self.onwards, known, range(count))
        back = _read(self.backwards, known, reversed(range(count)))
        support = known + torch.cat([there[place] + back[place] for place in range(count)])
        state, cell, read = asked, torch.zeros_like(asked), torch.zeros_like(asked)
        for _ in range(STEPS):
            hidden, cell = self.attending(asked, (state + read, cell))
            state = hidden + asked
            read = (state @ support.T).softmax(1) @ support
        return torch.cat([support, state])


def _read(cell: nn.LSTMCell, features: Tensor, order: Iterable[int]) -> dict[int, Tensor]:
    """Return an LSTM's state after each case, by the case's place."""
    hidden = memory = torch.zeros_like(features[:1])
    states = {}
    for place in order:
        hidden, memory = cell(features[place : place + 1], (hidden, memory))
        states[place] = hidden
    return states
