"""Asking hospitals what they are, and how well an initialisation adapts to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from common import wire
from common.config import Config
from common.errors import DataError, TooSmallError, WireError
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
    statistics: str
    """What the meta-training behind phi standardised numeric columns with; empty: each site its own."""


@dataclass(frozen=True)
class Present:
    """The connected sites: who takes part, by name, with node id and description; and why others do not."""

    sites: dict[str, tuple[int, wire.Description]]
    troubles: tuple[str, ...]
    small: frozenset[str] = frozenset()
    """Those of the troubles that come of too few patients."""

    def all_of_them(self) -> dict[str, tuple[int, wire.Description]]:
        """Return the sites; DataError with every site's words where any cannot take part.

        It is a TooSmallError, a line for each, where they have too few patients and nothing else is wrong.
        """
        if self.troubles:
            kind = DataError if set(self.troubles) - self.small else TooSmallError
            raise kind("\n".join(self.troubles))
        return self.sites


def describe(
    grid: Grid,
    config: Config,
    on_reply: Callable[[], None] = lambda: None,
    *,
    names: Mapping[int, str] | None = None,
    timeout: float = NO_HURRY,
) -> Present:
    """Ask every connected site what it is.

    `names` are the sites' names by node id where the coordinator knows them: then nobody else is asked,
    and a site that calls itself otherwise takes no part.
    """
    instruction = wire.Instruction(config=config.to_json())
    nodes = [node for node in grid.get_node_ids() if names is None or node in names]
    messages = [wire.instruct(node, wire.DESCRIBE, instruction, seconds=timeout) for node in nodes]
    known: dict[str, tuple[int, wire.Description]] = {}
    troubles = {} if names is None else {node: f"{names[node]}: {wire.SILENT}." for node in nodes}
    small = set()
    for place, reply in exchange(grid, messages, timeout=timeout):
        on_reply()
        node = nodes[place]
        try:
            description = _described(reply)
        except (WireError, TooSmallError) as error:
            troubles[node] = str(error) if names is None else _named(names[node], str(error))
            small |= {troubles[node]} if isinstance(error, TooSmallError) else set()
            continue
        if names is not None and description.site != names[node]:
            troubles[node] = f"{names[node]}: calls itself by another name; it has to join again."
            continue
        troubles.pop(node, None)
        known[description.site] = (node, description)
    return Present(known, tuple(sorted(set(troubles.values()))), frozenset(small))


def _described(reply: Message) -> wire.Description:
    if reply.has_error():
        kind = TooSmallError if reply.error.code == wire.TOO_SMALL else WireError
        raise kind(wire.words_of(reply))
    return wire.read_description(reply)


def _named(site: str, words: str) -> str:
    return words if words.startswith(f"{site}: ") else f"{site}: {words}"


def judge(
    grid: Grid,
    config: Config,
    nodes: Mapping[str, int],
    questions: Sequence[Question],
    on_trouble: Callable[[int, str], None] | None = None,
    *,
    timeout: float = NO_HURRY,
) -> Iterator[tuple[int, wire.Judgement]]:
    """Yield (place in `questions`, answer) as the answers come.

    `on_trouble` takes the place of a question that a site cannot answer, and why; without it such a
    question raises DataError in the site's own words.
    """
    phis = {id(question.phi): question.phi for question in questions}
    encoded = {key: wire.vector(phi) for key, phi in phis.items()}
    messages = [_ask(config, nodes, question, encoded[id(question.phi)]) for question in questions]
    silent = set(range(len(questions)))
    for place, reply in exchange(grid, messages, timeout=timeout):
        silent.discard(place)
        try:
            answer = _judged(reply, questions[place], config.metric, frozenset(config.kind.titles))
        except WireError as error:
            if on_trouble is None:
                raise DataError(_named(questions[place].site, str(error))) from error
            on_trouble(place, str(error))
            continue
        yield place, answer
    for place in sorted(silent):
        if on_trouble is None:
            raise DataError(f"{questions[place].site}: {wire.SILENT}.")
        on_trouble(place, f"it {wire.SILENT}")


def _judged(reply: Message, question: Question, headline: str, metrics: frozenset[str]) -> wire.Judgement:
    """Return an answer; WireError where it does not fit its question."""
    if reply.has_error():
        raise WireError(wire.words_of(reply))
    answer = wire.read_judgement(reply)
    if answer.left_out:
        return answer
    fits = (
        answer.draws.keys() == answer.replicates.keys() == metrics
        and headline in answer.draws
        and not np.isnan(answer.draws[headline]).any()
        and all(len(values) in (1, question.draws) for values in answer.draws.values())
        and all(len(values) == question.replicates for values in answer.replicates.values())
    )
    if not fits:
        raise WireError("what a site measured is not what was asked for.")
    return answer


def _ask(config: Config, nodes: Mapping[str, int], question: Question, phi: ArrayRecord) -> Message:
    instruction = wire.Instruction(
        config=config.to_json(),
        algorithm=question.algorithm,
        shot=question.shot,
        recipe=wire.encode_recipe(question.recipe) if question.recipe else "",
        draws=question.draws,
        replicates=question.replicates,
        purpose=question.purpose,
        statistics=question.statistics,
    )
    return wire.instruct(nodes[question.site], wire.EVALUATE, instruction, phi)
