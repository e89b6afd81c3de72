"""How many bytes a hospital may put into the coordinator's store in one run, by what the run itself sent.

A hospital's replies are about as long as the messages that they answer. One that sends many times as much
fills a disk.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

TIMES, SLACK = 4, 2**28
"""A hospital may send so many times the bytes that the coordinator sent in the run, and so many more."""
RUNS = 64
"""Runs that are counted; the one that was heard of longest ago is forgotten first."""


class Allowance:
    """Bytes by run and sender; 0 stands for the coordinator. Counts begin anew when the service starts."""

    def __init__(self) -> None:
        self._runs: OrderedDict[int, Counter[int]] = OrderedDict()

    def has_room(self, run: int, node: int, length: int) -> bool:
        """Return whether a node may send `length` bytes more in this run."""
        sent = self._runs.get(run, Counter())
        return sent[node] + length <= TIMES * sent[0] + SLACK

    def count(self, run: int, node: int, length: int) -> None:
        """Remember that a node's bytes, or (node 0) the coordinator's, were taken."""
        self._runs.setdefault(run, Counter())[node] += length
        self._runs.move_to_end(run)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
