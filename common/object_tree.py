"""How much a message is before it is put together: its objects counted, and its length once unpacked.

Flower's objects name each other by digest, and one may be named many times: a piece of 5 MiB that an array
names a thousand times is 5 GiB in memory. So what stands many times counts as often.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

from common.errors import WireError

MOST_OBJECTS, DEEPEST = 1024, 8
"""Objects of one message, and how deep they hang: message, records, record, array, piece (of 5 MiB) are 5."""


def identifiers(tree: ObjectTree) -> list[str]:
    """Return the identifiers of every object that hangs from `tree`, children first.

    Raises WireError where they are more, or hang deeper, than any message of ours.
    """
    found: list[str] = []

    def walk(below: ObjectTree, depth: int) -> None:
        for child in below.children:
            walk(child, depth + 1)
        found.append(below.object_id)
        if len(found) > MOST_OBJECTS or depth > DEEPEST:
            raise WireError(f"a message is of more than {MOST_OBJECTS} objects, or deeper than {DEEPEST}.")

    walk(tree, 1)
    return found


def unpacked_length(root: str, contents: Mapping[str, bytes]) -> int:
    """Return how many bytes the objects that `root` names come to, each as often as it is named.

    Whatever a parser raises is left to the caller, and so is KeyError where an object is missing.
    """
    lengths: dict[str, int] = {}

    def length(identifier: str, depth: int) -> int:
        if depth > DEEPEST:
            raise WireError("a message's objects name each other in a circle.")
        if identifier not in lengths:
            content = contents[identifier]
            named = (length(child, depth + 1) for child in _named(content))
            lengths[identifier] = len(content) + sum(named)
        return lengths[identifier]

    return length(root, 1)


def _named(content: bytes) -> Iterator[str]:
    """Yield the identifiers that an object names, each as often as it does (Flower's `deflate`)."""
    kind, children, body_length = get_object_head_values_from_object_content(content)
    body = content[len(content) - body_length :]
    if kind == "Array":
        yield from (children[index] for index in json.loads(body)["arraychunk_ids"])
    elif kind in ("ArrayRecord", "RecordDict"):
        yield from json.loads(body).values()
    else:
        yield from children
