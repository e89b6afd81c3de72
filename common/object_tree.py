"""How much a message is before it is put together: its objects counted, and its length once unpacked.

Flower's objects name each other by digest, and one may be named many times: a piece of 5 MiB that an array
names a thousand times is 5 GiB in memory. So what stands many times counts as often.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

from common.errors import WireError

MOST_OBJECTS, DEEPEST = 1024, 8
"""Objects of one message, and how deep they hang: message, records, record, array, piece (of 5 MiB) are 5."""
PIECE = "ArrayChunk"
"""What Flower calls a piece of an array."""
LONGEST_RECORDS = 2**23
"""Bytes of one message beside the pieces of its arrays: read, they take up to fifty times as many."""


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

    WireError: those that are no pieces of arrays come to more than `LONGEST_RECORDS`. Whatever a parser
    raises is left to the caller, and so is KeyError where an object is missing.
    """
    lengths: dict[str, tuple[int, int]] = {}

    def length(identifier: str, depth: int) -> tuple[int, int]:
        if depth > DEEPEST:
            raise WireError("a message's objects name each other in a circle.")
        if identifier not in lengths:
            content = contents[identifier]
            (kind, named), size = _read(content), len(content)
            pieces, records = (size, 0) if kind == PIECE else (0, size)
            for child in named:
                below = length(child, depth + 1)
                pieces, records = pieces + below[0], records + below[1]
            lengths[identifier] = pieces, records
        return lengths[identifier]

    pieces, records = length(root, 1)
    if records > LONGEST_RECORDS:
        raise WireError(f"a message is longer than {LONGEST_RECORDS} bytes beside its arrays.")
    return pieces + records


def _read(content: bytes) -> tuple[str, Iterable[str]]:
    """Return an object's kind, and whom it names, as often as it does (Flower's `deflate`)."""
    kind, children, body_length = get_object_head_values_from_object_content(content)
    if kind not in ("Array", "ArrayRecord", "RecordDict"):
        return kind, children
    body = json.loads(content[len(content) - body_length :])
    return kind, [children[index] for index in body["arraychunk_ids"]] if kind == "Array" else body.values()
