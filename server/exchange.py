"""Sending messages over a Flower grid and taking replies one by one, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

SHORTEST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Seconds between two looks for replies: a quick reply costs little delay, a slow one few looks."""


def exchange(grid: Grid, messages: Sequence[Message], *, timeout: float) -> Iterator[tuple[int, Message]]:
    """Yield (place in `messages`, reply) as replies arrive, until all have come or `timeout` is over.

    A reply's source is set to the node that was asked, whatever the reply says of itself. A message that
    could not even be sent is answered at once, with an error: nobody waits for it, and it is not late.

    Flower's own `send_and_receive` returns them together at the end, which holds a whole cohort's
    weights in memory.
    """
    deadline = time.monotonic() + timeout
    pushed = list(grid.push_messages(messages))
    for place, sent in enumerate(pushed):
        if not sent:
            yield place, Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=messages[place])
    places = {sent: place for place, sent in enumerate(pushed) if sent}
    waiting = set(places)
    pause = SHORTEST_PAUSE
    while waiting and time.monotonic() < deadline:
        arrived = False
        for reply in grid.pull_messages(waiting):
            answered = reply.metadata.reply_to_message_id
            if answered not in waiting:
                continue
            waiting.discard(answered)
            arrived = True
            place = places[answered]
            reply.metadata.__dict__["_src_node_id"] = messages[place].metadata.dst_node_id
            yield place, reply
        if arrived:
            pause = SHORTEST_PAUSE
        else:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)
