"""One canonical, length-prefixed encoding for all that is signed, hashed, sent or stored.

An item is a tag byte, the content's length as 8 bytes big-endian, and the content:

| tag | value | content |
|---|---|---|
| `N` | None | empty |
| `I` | whole number >= 0 | big-endian, shortest |
| `F` | finite float | IEEE 754 binary64, big-endian |
| `S` | str | UTF-8 |
| `B` | bytes | as they are |
| `L` | sequence | its items |
| `M` | mapping from str | keys and values in turn, keys strictly ascending |
| `R` | record (a dataclass) | its class name, then its fields in order |

Two values have the same encoding only if they are equal, and `load` takes nothing but what `dump` writes.
Reading follows the expected type, so depth and names never come from the sender.
"""

from __future__ import annotations

import hashlib
import math
import struct
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from common.secagg.reasons import Reason, refusal

VERSION = 2
T = TypeVar("T")


def dump(value: object) -> bytes:
    """Return the canonical encoding; TypeError or ValueError for what has none, which is a fault of ours."""
    tag, content = _content(value)
    return tag + len(content).to_bytes(8, "big") + content


def load(kind: type[T], data: bytes) -> T:
    """Return the value of type `kind` that `dump` wrote; SecAggError `malformed` for anything else."""
    try:
        value, end = _read(kind, memoryview(data), 0)
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:
        raise refusal(Reason.MALFORMED) from error
    if end != len(data):
        raise refusal(Reason.MALFORMED)
    return cast(T, value)


def statement(purpose: str, *content: object) -> bytes:
    """Return the bytes to sign or to use as context for one purpose; no two purposes share any."""
    return dump(("zamenis secure aggregation", VERSION, purpose, content))


def digest(purpose: str, *content: object) -> bytes:
    """Return SHA-256 of a statement: 32 bytes."""
    return hashlib.sha256(statement(purpose, *content)).digest()


def _content(value: object) -> tuple[bytes, bytes]:
    if value is None:
        return b"N", b""
    if isinstance(value, int) and not isinstance(value, bool):
        return b"I", value.to_bytes((value.bit_length() + 7) // 8, "big")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("only finite floats have an encoding.")
        return b"F", struct.pack(">d", value)
    if isinstance(value, str):
        return b"S", value.encode()
    if isinstance(value, bytes):
        return b"B", value
    if isinstance(value, tuple):
        return b"L", b"".join(map(dump, value))
    if isinstance(value, Mapping):
        return b"M", b"".join(dump(key) + dump(value[key]) for key in sorted(value))
    if is_dataclass(value) and not isinstance(value, type):
        parts = (dump(getattr(value, field.name)) for field in fields(value))
        return b"R", dump(type(value).__name__) + b"".join(parts)
    raise TypeError(f"{type(value).__name__} has no canonical encoding.")


def _read(kind: Any, data: memoryview, start: int) -> tuple[Any, int]:
    """Return one value of type `kind` and where the next item starts."""
    tag, body = bytes(data[start : start + 1]), start + 9
    end = body + int.from_bytes(data[start + 1 : body], "big")
    if len(tag) != 1 or end > len(data):
        raise ValueError("an item ends early")
    return _value(kind, tag, data[body:end]), end


def _value(kind: Any, tag: bytes, content: memoryview) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
        return None if tag == b"N" and not content else _value(kind, tag, content)
    if kind in _SCALARS and tag == _SCALARS[kind][0]:
        return _SCALARS[kind][1](bytes(content))
    if origin is tuple and tag == b"L":
        return tuple(_items(typing.get_args(kind)[0], content))
    if origin is dict and tag == b"M":
        return _mapping(typing.get_args(kind)[1], content)
    if is_dataclass(kind) and tag == b"R":
        return _record(kind, content)
    raise ValueError("an item has another type than expected")


def _items(kind: Any, content: memoryview) -> typing.Iterator[Any]:
    start = 0
    while start < len(content):
        value, start = _read(kind, content, start)
        yield value


def _mapping(kind: Any, content: memoryview) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    start = 0
    while start < len(content):
        key, start = _read(str, content, start)
        if pairs and key <= next(reversed(pairs)):
            raise ValueError("keys are not in order")
        pairs[key], start = _read(kind, content, start)
    return pairs


def _record(kind: Any, content: memoryview) -> Any:
    name, start = _read(str, content, 0)
    if name != kind.__name__:
        raise ValueError("another record than expected")
    values = {}
    for field, field_kind in _fields(kind).items():
        values[field], start = _read(field_kind, content, start)
    if start != len(content):
        raise ValueError("a record has too many fields")
    return kind(**values)


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _whole(content: bytes) -> int:
    if content[:1] == b"\0":
        raise ValueError("a number is not in its shortest form")
    return int.from_bytes(content, "big")


def _float(content: bytes) -> float:
    (value,) = struct.unpack(">d", content)
    if not math.isfinite(value):
        raise ValueError("a float is not finite")
    return float(value)


_SCALARS: dict[Any, tuple[bytes, Any]] = {
    int: (b"I", _whole),
    float: (b"F", _float),
    str: (b"S", lambda content: content.decode()),
    bytes: (b"B", bytes),
}
