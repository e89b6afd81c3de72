"""A hospital that lies in a masked sum: what it adds to its vector, which nobody can look into.

Masks hide a vector and do not bind it: whoever adds whole numbers to its masked words adds them to the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.site import NodeConfig
from common import wire
from common.secagg.encoding import load
from common.secagg.layout import Layout
from common.secagg.messages import MaskRequest
from common.secagg.packing import Packed
from simulation.grid import InProcessGrid

Lie = Callable[[Layout, bytes], bytes]
"""From a slot's layout and the vector that the liar would honestly send to the one that it sends."""


def shifted(
    layout: Layout, packed: bytes, shift: NDArray[np.float64], metrics: Mapping[str, int] | None = None
) -> bytes:
    """Return a masked vector that moves the sum by `shift` `[parameter]`, and metrics by whole levels."""
    numbers = np.zeros(layout.lanes * layout.words, np.int64)
    numbers[: layout.parameters] = np.rint(shift / layout.step)
    start = layout.parameters
    for metric in (layout.weight_metric, *layout.metrics):
        numbers[start] = (metrics or {}).get(metric.name, 0)
        start += layout.limbs(metric)
    words = np.zeros(layout.words, np.uint64)
    Packed(layout.words, layout.word_bytes, packed).add_to(slice(None), words)
    for lane, part in enumerate(numbers.reshape(layout.lanes, layout.words)):
        words += part.astype(np.uint64) << np.uint64(lane * layout.width)
    sent = Packed(layout.words, layout.word_bytes)
    sent.write(slice(None), words)
    return sent.data.tobytes()


class LyingGrid(InProcessGrid):
    """A grid on which one hospital's masked vectors are lies; all else that it does is honest.

    A careful one is honest in rehearsals too, where it would be found out.
    """

    def __init__(
        self, app: ClientApp, nodes: list[NodeConfig], liar: str, lie: Lie, *, careful: bool = True
    ) -> None:
        super().__init__(app, nodes, workers=1)
        self._kinds = {wire.TRAIN} if careful else {wire.TRAIN, wire.REHEARSE}
        self._liar, self._lie = next(n for n, node in enumerate(nodes, 2) if node["site"] == liar), lie
        self._layouts: dict[str, Layout] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, and remember the layout that the liar is told."""
        ids = []
        for message in messages:
            (sent,) = super().push_messages([message])
            ids.append(sent)
            if message.metadata.dst_node_id == self._liar and wire.is_secured(message):
                request = wire.read_secured(message).request
                if request and message.metadata.message_type in self._kinds:
                    self._layouts[sent] = load(MaskRequest, request).plan.layout
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield replies, the liar's masked vector replaced."""
        for reply in super().pull_messages(message_ids):
            layout = self._layouts.get(reply.metadata.reply_to_message_id)
            if layout is not None and not reply.has_error():
                lied = self._lie(layout, wire.read_masked(reply)[1])
                vector = Array("uint8", (len(lied),), wire.RAW, lied)
                reply.content["masked"] = ArrayRecord({"vector": vector})
            yield reply
