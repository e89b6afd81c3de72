"""Asking hospitals what they are, and how well an initialisation adapts to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from common import wire
from common.config import Config
from common.errors import DataError
from common.inner_loop import InnerLoop
from server.exchange import exchange
from server.outer_loop import Vector

NO_HURRY = 24 * 3600.0
"""Seconds that a question may take; reading a hospital's archive for the first time is slow."""


@dataclass(frozen=True)
class Question:
    """Adapt `phi` to `shot` patients per class at `site` by `recipe`, and judge it there."""

    site: str
    algorithm: str
    phi: Vector
    shot: int
    recipe: InnerLoop | None
    draws: int
    replicates: int
    purpose: str


def describe(
    grid: Grid, config: Config, on_reply: Callable[[], None] = lambda: None
) -> dict[str, tuple[int, wire.Description]]:
    """Return every connected site by name: its node id and what it says of itself.

    Raises DataError with every site's words where any cannot take part.
    """
    instruction = wire.Instruction(config=config.to_json())
    messages = [wire.instruct(node, wire.DESCRIBE, instruction) for node in grid.get_node_ids()]
    known: dict[str, tuple[int, wire.Description]] = {}
    troubles = []
    for reply in exchange(grid, messages, timeout=NO_HURRY):
        on_reply()
        if reply.has_error():
            troubles.append(reply.error.reason or "a site gave no reason")
            continue
        description = wire.read_description(reply)
        known[description.site] = (reply.metadata.src_node_id, description)
    if troubles:
        raise DataError("\n".join(sorted(set(troubles))))
    return known


def judge(
    grid: Grid, config: Config, nodes: Mapping[str, int], questions: Sequence[Question]
) -> Iterator[tuple[int, wire.Judgement]]:
    """Yield (place in `questions`, answer) as the answers come.

    Raises DataError in a site's own words where it cannot answer.
    """
    phis = {id(question.phi): question.phi for question in questions}
    encoded = {key: wire.vector(phi) for key, phi in phis.items()}
    messages = [_ask(config, nodes, question, encoded[id(question.phi)]) for question in questions]
    replies = exchange(grid, messages, timeout=NO_HURRY)
    places: dict[str, int] = {}
    for reply in replies:
        places = places or {message.metadata.message_id: place for place, message in enumerate(messages)}
        if reply.has_error():
            raise DataError(reply.error.reason or "a site could not adapt and gave no reason.")
        yield places[reply.metadata.reply_to_message_id], wire.read_judgement(reply)


def _ask(config: Config, nodes: Mapping[str, int], question: Question, phi: ArrayRecord) -> Message:
    instruction = wire.Instruction(
        config=config.to_json(),
        algorithm=question.algorithm,
        shot=question.shot,
        recipe=wire.encode_recipe(question.recipe) if question.recipe else "",
        draws=question.draws,
        replicates=question.replicates,
        purpose=question.purpose,
    )
    return wire.instruct(nodes[question.site], wire.EVALUATE, instruction, phi)
