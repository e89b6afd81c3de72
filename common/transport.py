"""Flower's messages as what travels: a header, a tree of content-addressed objects, and the objects.

The one adaptor to Flower's object transport, for the hospital's line and the coordinator's alike.
`tests/common/test_transport.py` fails when a newer flwr changes what is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)

from common.errors import WireError
from common.object_tree import identifiers, unpacked_length

LONGEST_ARRIVAL = 120.0
"""Seconds in which a message has to arrive once it was announced."""
FIRST_LOOK, LAST_LOOK = 0.01, 1.0
"""Seconds between two looks for a piece that is on its way, doubling."""
PullObject = Callable[[str], bytes]
PushObject = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Parcel:
    """A message taken apart: its header, how its objects hang together, and the objects by identifier."""

    header: Header
    tree: ObjectTree
    objects: dict[str, InflatableObject]

    def push(self, identifiers: set[str], push_object: PushObject) -> None:
        """Hand over those objects that the other side asks for."""
        with no_object_id_recompute():
            push_objects(self.objects, push_object, object_ids_to_push=identifiers)


def take_apart(message: Message) -> Parcel:
    """Return `message` as it travels; its identifier is the digest of its content."""
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        header = message_to_proto(remove_content_from_message(message))
        return Parcel(header, get_object_tree(message), get_all_nested_objects(message))


def fetch(tree: ObjectTree, pull_object: PullObject, *, limit: int = 0) -> Message:
    """Return the message whose objects hang from `tree`, waiting for those that are still on their way.

    Raises WireError where they are together longer than `limit` bytes (0: no limit), as soon as that is
    known, where they do not come, or where they are no message.
    """
    received = 0

    def counted(identifier: str) -> bytes:
        nonlocal received
        content = pull_object(identifier)
        received += len(content)
        if limit and received > limit:
            raise _too_long(limit)
        return content

    try:
        contents = pull_objects(
            identifiers(tree),
            counted,
            max_time=LONGEST_ARRIVAL,
            initial_backoff=FIRST_LOOK,
            backoff_cap=LAST_LOOK,
            max_tries_per_object=None,
        )
    except ObjectPullError as error:
        raise WireError("a message did not arrive whole.") from error
    return put_together(tree, contents, limit=limit)


def put_together(tree: ObjectTree, contents: dict[str, bytes], *, limit: int = 0) -> Message:
    """Return the message of these objects by identifier.

    Raises WireError where they are no message, or one longer than `limit` bytes (0: no limit) or, beside its
    arrays, than any of ours.
    """
    try:
        length = unpacked_length(tree.object_id, contents)
        if limit and length > limit:
            raise _too_long(limit)
        message = inflate_object_from_contents(tree.object_id, contents)
    except WireError:
        raise
    except Exception as error:  # whatever a parser does with bytes that somebody made up
        raise WireError("a message's parts do not fit together.") from error
    if not isinstance(message, Message):
        raise WireError("what came is no message.")
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _too_long(limit: int) -> WireError:
    return WireError(f"a message is longer than the {limit // 2**20} MiB that are allowed.")


def to_bytes(message: Message) -> bytes:
    """Return a whole message as bytes, for another process of this machine."""
    content: bytes = message_to_proto(message).SerializeToString()
    return content


def from_bytes(content: bytes) -> Message:
    """Return the message that `to_bytes` wrote."""
    return message_from_proto(Header.FromString(content))


def broken(header: Header) -> Message:
    """Return, for a reply whose parts never came or do not fit, an error in its place."""
    received = message_from_proto(header)
    error = Error(code=ErrorCode.UNKNOWN, reason="its reply did not arrive whole.")
    return make_message(metadata=received.metadata, error=error)
