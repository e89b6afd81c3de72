"""The canonical encoding: one value, one form, and nothing else is read."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.encoding import digest, dump, load, statement

GOLDEN = Path(__file__).parent / "golden" / "encoding.json"


@dataclass(frozen=True)
class Inner:
    """A record within a record."""

    name: str
    amount: float


@dataclass(frozen=True)
class Sample:
    """One field of every kind."""

    number: int
    data: bytes
    inner: Inner
    many: tuple[Inner, ...]
    named: dict[str, bytes] = field(default_factory=dict)
    perhaps: Inner | None = None


@dataclass(frozen=True)
class Other:
    """The same fields as Inner under another name."""

    name: str
    amount: float


inners = st.builds(Inner, st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False))
samples = st.builds(
    Sample,
    st.integers(0, 2**70),
    st.binary(max_size=9),
    inners,
    st.lists(inners, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=3),
    st.none() | inners,
)
EXAMPLE = Sample(
    number=258,
    data=b"\x01",
    inner=Inner("é", 0.5),
    many=(Inner("", -1.0),),
    named={"b": b"2", "a": b"1"},
)


@given(samples)
def test_what_is_dumped_is_loaded(sample: Sample) -> None:
    """Loading undoes dumping."""
    assert load(Sample, dump(sample)) == sample


@given(samples, st.data())
def test_only_what_is_dumped_is_loaded(sample: Sample, data: st.DataObject) -> None:
    """A changed byte gives a refusal or another value whose form is exactly the changed bytes."""
    changed = bytearray(dump(sample))
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    with suppress(SecAggError):
        assert dump(load(Sample, bytes(changed))) == bytes(changed)


@given(samples, st.integers(1, 40))
def test_a_form_has_one_end(sample: Sample, size: int) -> None:
    """Cut short or prolonged, it is refused."""
    whole = dump(sample)
    for wrong in (whole[:-size], whole + bytes(size)):
        with pytest.raises(SecAggError, match="canonical encoding"):
            load(Sample, wrong)


def test_second_forms_of_a_value_are_refused() -> None:
    """Leading zeros, keys out of order or twice, other names, tags or numbers of fields, too long lengths."""

    def item(tag: bytes, content: bytes) -> bytes:
        return tag + len(content).to_bytes(8, "big") + content

    a, b = dump("a") + dump(b""), dump("b") + dump(b"")
    assert load(dict[str, bytes], item(b"M", a + b)) == {"a": b"", "b": b""}
    fields = dump("Inner") + dump("x") + dump(1.0)
    assert load(Inner, item(b"R", fields)) == Inner("x", 1.0)
    for kind, form in (
        (int, item(b"I", b"\0\1")),
        (dict[str, bytes], item(b"M", b + a)),
        (dict[str, bytes], item(b"M", a + a)),
        (Inner, item(b"R", fields + dump(1))),
        (Inner, item(b"R", dump("Other") + dump("x") + dump(1.0))),
        (Inner | None, item(b"N", b"x")),
        (float, item(b"F", b"\x7f\xf0" + bytes(6))),
        (tuple[str, ...], item(b"M", dump("a"))),
        (tuple[str, ...], item(b"R", dump("a"))),
        (dict[str, bytes], item(b"L", a)),
        (dict[str, bytes], item(b"R", a)),
        (dict[str, bytes], dump(("a",))),
        (Inner, item(b"L", fields)),
        (Inner, item(b"M", fields)),
        (tuple[str, ...], item(b"L", b"S" + (5).to_bytes(8, "big") + b"ab")),
        (str, b"S" + ((1 << 56) + 2).to_bytes(8, "big") + b"ab"),
    ):
        with pytest.raises(SecAggError, match="canonical encoding"):
            load(kind, form)  # type: ignore[arg-type]


def test_neighbouring_fields_cannot_trade_bytes() -> None:
    """("ab", "c") and ("a", "bc") differ, as do purposes, types and record names."""
    forms = [
        statement("x", "ab", "c"),
        statement("x", "a", "bc"),
        statement("xa", "b", "c"),
        statement("x", b"ab", "c"),
        statement("x", ("ab", "c")),
        statement("x", "ab", "c", None),
    ]
    assert len(set(forms)) == len(forms)
    with pytest.raises(SecAggError):
        load(Inner, dump(Other("a", 1.0)))


def test_what_has_no_form_is_our_fault() -> None:
    """Not-a-number, negative whole numbers and foreign types are programming errors, not refusals."""
    for wrong in (float("nan"), float("inf"), -1, {1}, True):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            dump(wrong)


def test_the_form_never_changes() -> None:
    """Known answers: a change here breaks every stored state and every mixed federation."""
    golden = json.loads(GOLDEN.read_text())
    assert dump(EXAMPLE).hex() == golden["sample"]
    assert digest("purpose", "run", 1).hex() == golden["digest"]
