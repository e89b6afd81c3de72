"""Messages taken apart and put together again; a newer flwr that changes this fails here."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity

from common import transport, wire
from common.errors import WireError
from common.object_tree import identifiers

PARAMETERS = 3_000_000
"""More than one of Flower's pieces of 5 MiB."""


@pytest.fixture
def message() -> Message:
    """Return a train message."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    phi = torch.arange(PARAMETERS, dtype=torch.float32)
    return wire.instruct(5, wire.TRAIN, wire.Instruction(config="{}"), wire.vector(phi), seconds=60)


def pieces(message: Message) -> tuple[transport.Parcel, dict[str, bytes]]:
    """Return a message taken apart, and its pieces as they are pushed."""
    parcel, pushed = transport.take_apart(message), dict[str, bytes]()
    wanted = set(identifiers(parcel.tree))
    parcel.push(wanted, pushed.__setitem__)
    assert pushed.keys() == wanted
    return parcel, pushed


def test_a_message_comes_together_as_it_was(message: Message) -> None:
    """In pieces over a network, and whole to another process."""
    parcel, pushed = pieces(message)
    assert len(pushed) > 5
    back = transport.fetch(parcel.tree, pushed.__getitem__)
    again = transport.from_bytes(transport.to_bytes(back))
    assert again.metadata.message_id == message.metadata.message_id
    assert torch.equal(wire.read_phi(again, PARAMETERS), wire.read_phi(message, PARAMETERS))
    assert wire.read_instruction(again) == wire.Instruction(config="{}")


def test_a_message_that_is_too_long_is_refused_before_it_is_whole(message: Message) -> None:
    """The limit counts while pieces come."""
    parcel, pushed = pieces(message)
    asked: list[str] = []

    def pull(identifier: str) -> bytes:
        asked.append(identifier)
        return pushed[identifier]

    with pytest.raises(WireError, match="longer than the 1 MiB"):
        transport.fetch(parcel.tree, pull, limit=2**20)
    assert len(asked) < len(pushed)


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_no_array_is_bounded_whatever_the_limit(message: Message, times: int) -> None:
    """Seven MiB of whole numbers take fifty times as much to read; named three times, three times that."""
    numbers = ConfigRecord({"numbers": [1000 + place % 1000 for place in range(7 * 2**19)]})
    message.content.update({f"more-{place}": numbers for place in range(times)})
    parcel, pushed = pieces(message)
    if times == 1:
        assert len(transport.put_together(parcel.tree, pushed).content) == len(message.content)
        return
    with pytest.raises(WireError, match="longer than 8388608 bytes beside its arrays"):
        transport.put_together(parcel.tree, pushed)


def test_pieces_that_never_come_or_do_not_fit_are_told(message: Message) -> None:
    """In our own words, never an exception of the library's."""
    parcel, pushed = pieces(message)

    def lost(identifier: str) -> bytes:
        raise ObjectPullError(identifier, "it is not there")

    with pytest.raises(WireError, match="did not arrive whole"):
        transport.fetch(parcel.tree, lost)
    del pushed[identifiers(parcel.tree)[-1]]
    with pytest.raises(WireError):
        transport.put_together(parcel.tree, {**pushed, parcel.tree.object_id: b"garbage"})
    assert transport.broken(parcel.header).has_error()
