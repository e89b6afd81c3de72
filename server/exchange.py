"""Sending messages over a Flower grid and taking replies one by one, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

SHORTEST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Seconds between two looks for replies: a quick reply costs little delay, a slow one few looks."""


def exchange(grid: Grid, messages: Iterable[Message], *, timeout: float) -> Iterator[Message]:
    """Yield the reply to each message as it arrives, until all have come or `timeout` seconds are over.

    Flower's own `send_and_receive` returns them together at the end, which holds a whole cohort's
    weights in memory.
    """
    deadline = time.monotonic() + timeout
    waiting = set(grid.push_messages(messages))
    pause = SHORTEST_PAUSE
    while waiting and time.monotonic() < deadline:
        arrived = False
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            arrived = True
            yield reply
        if arrived:
            pause = SHORTEST_PAUSE
        else:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)
