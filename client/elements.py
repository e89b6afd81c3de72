"""A DICOM file's elements, each looked up once, and its pixel data left in the file until they are wanted.

pydicom makes five data sets of a file, and goes through a dozen calls at every look at an element, also at
one that is not there. Reading an image takes some sixty looks; together that costs more than the image. What
is out of the ordinary in any way is left to pydicom, and so is what to make of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from io import BufferedReader
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import data_element_generator, read_partial
from pydicom.tag import BaseTag

PREAMBLE = 128
"""Bytes before the four of the prefix DICM (PS3.10, section 7.1)."""
META_LENGTH, CHARACTER_SET, PIXEL_DATA = BaseTag(0x00020000), BaseTag(0x00080005), BaseTag(0x7FE00010)
UNDEFINED = 2**32 - 1
"""The length of an element that ends with a delimiter (PS3.5, section 7.1.1)."""
STRAIGHT = frozenset(uid.AllTransferSyntaxes) - {
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
}
"""Transfer syntaxes whose elements stand in the file as they are, little end first."""

Element = DataElement | RawDataElement
_MISSING = object()
_WORDS = re.compile(rb"[A-Za-z0-9.^_:/+-]+(?: [A-Za-z0-9.^_:/+-]+)*")
"""Text that is the same in every character set of the Standard."""
_DECIMAL, _WHOLE = re.compile(rb"[+-]?[0-9]+(?:\.[0-9]*)?"), re.compile(rb"[+-]?[0-9]+")
_PLAIN: dict[str, tuple[re.Pattern[bytes], Callable[[bytes], Any]]] = {
    "DS": (_DECIMAL, float),
    "IS": (_WHOLE, int),
    **dict.fromkeys(("AE", "CS", "DA", "LO", "SH", "TM", "UI"), (_WORDS, bytes.decode)),
}
"""By VR: what nearly all values are, and how they are read."""


class Looked:
    """Elements by keyword; their values are those of pydicom."""

    def __init__(self, found: Mapping[BaseTag, Element], whole: Callable[[], Dataset]) -> None:
        """`whole` returns the same as pydicom's data set, always one and the same."""
        self._found = {int(tag): element for tag, element in found.items()}
        self._whole = whole
        self._values: dict[str, Any] = {}

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return an element's value, or `default` where there is none."""
        value = self._values.get(keyword)
        if value is None:
            value = self._values[keyword] = self._look_up(keyword)
        return default if value is _MISSING else value

    def __getattr__(self, keyword: str) -> Any:
        """Return an element's value. AttributeError: there is none."""
        value = self.get(keyword, _MISSING)
        if value is _MISSING:
            raise AttributeError(keyword)
        return value

    def __contains__(self, keyword: str) -> bool:
        return _tag(keyword) in self._found

    def complete(self, keyword: str, value: Any) -> None:
        """Set an element that the file lacks."""
        setattr(self._whole(), keyword, value)
        self._found[_tag(keyword)] = self._whole()[keyword]
        self._values.pop(keyword, None)

    def _look_up(self, keyword: str) -> Any:
        element = self._found.get(_tag(keyword))
        if element is None:
            return _MISSING
        value = _at_once(element)
        return self._whole().get(keyword, _MISSING) if value is _MISSING else value


class Elements(Looked):
    """The elements of a file that stays open."""

    little: bool
    """Whether numbers stand with their little end first."""
    file_meta: Looked

    def __init__(self, file: BufferedReader, *, bare: bool) -> None:
        """Read all elements but pixel data at the file's very end, whose place alone is kept.

        `bare`: the file begins without a preamble. Raises what `pydicom.dcmread` raises.
        """
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._left: RawDataElement | None = None
        if bare or not self._read_straight():
            file.seek(0)
            self._left = None
            dataset = read_partial(file, self._at_the_end, force=bare)
            self.implicit, self.little = (bool(one) for one in dataset.original_encoding)
            self.file_meta = Looked(dict(dataset.file_meta.items()), lambda: dataset.file_meta)
            super().__init__(dict(dataset.items()), lambda: dataset)

    @property
    def left(self) -> int:
        """How many bytes of pixel data are left in the file; 0: none, they are an element like the others."""
        return self._left.length if self._left else 0

    @property
    def dataset(self) -> Dataset:
        """The data set as pydicom has it, with pixel data."""
        dataset = self._whole()
        if self._left:
            left, self._left = self._left, None
            self._file.seek(left.value_tell)
            content = self._file.read(left.length)
            dataset[PIXEL_DATA] = left._replace(value=content, is_little_endian=self.little)
        return dataset

    def read_left(self, offset: int, into: NDArray[np.integer[Any]]) -> None:
        """Fill an array with the pixel data left in the file, from `offset` bytes on. EOFError: too few."""
        assert self._left  # noqa: S101 - `left` tells
        self._file.seek(self._left.value_tell + offset)
        if self._file.readinto(into.data.cast("B")) != into.nbytes:
            raise EOFError

    def _read_straight(self) -> bool:
        """Read a file of the ordinary kind; False: it is of another, or anything at all is wrong with it."""
        file = self._file
        file.seek(PREAMBLE)
        try:
            if file.read(4) != b"DICM":
                return False
            meta = {one.tag: one for one in data_element_generator(file, False, True, _after_meta)}
            syntax = _at_once(meta[BaseTag(0x00020010)])
            length = next(iter(meta.values()))
            first = file.peek(6)[:6]
            explicit = first[4:].isalpha() and first[4:].isupper()
            if (
                syntax not in STRAIGHT
                or (length.tag, length.VR, len(length.value or b"")) != (META_LENGTH, "UL", 4)
                or len(first) < 6
                or first[:2] == bytes(2)
                or explicit == (syntax == uid.ImplicitVRLittleEndian)
            ):
                return False
            self.implicit, self.little = not explicit, True
            generator = data_element_generator(file, self.implicit, True, self._at_the_end)
            found = {one.tag: one for one in generator}
            characters: str | list[str] = default_encoding
            if CHARACTER_SET in found:
                characters = convert_encodings(
                    Dataset({CHARACTER_SET: found[CHARACTER_SET]})[CHARACTER_SET].value
                )
        except Exception:  # pydicom's own reader meets it as well
            return False

        @cache
        def whole_meta() -> FileMetaDataset:
            return FileMetaDataset(meta)

        @cache
        def whole() -> Dataset:
            dataset = Dataset(found)
            dataset.file_meta = whole_meta()
            dataset.set_original_encoding(self.implicit, self.little, characters)
            return dataset

        self.file_meta = Looked(meta, whole_meta)
        super().__init__(found, whole)
        return True

    def _at_the_end(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        """Return whether these are pixel data that end with the file, and keep their place."""
        if tag != PIXEL_DATA or not 0 < length < UNDEFINED:
            return False
        start = self._file.tell()
        if start + length != self._size:
            return False
        self._left = RawDataElement(tag, vr, length, None, start, vr is None, True)
        return True


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


@cache
def _tag(keyword: str) -> int:
    return cast(int, tag_for_keyword(keyword))


@cache
def _usual(tag: int) -> str:
    return dictionary_VR(tag)


def _at_once(element: Element) -> Any:
    """Return the value of an element as plain as nearly all are; _MISSING where pydicom is to tell it."""
    content = element.value
    if not isinstance(element, RawDataElement) or not content:
        return _MISSING
    kind = element.VR or _usual(int(element.tag))
    if kind == "US" and len(content) == 2:
        return int.from_bytes(content, "little" if element.is_little_endian else "big")
    if kind not in _PLAIN:
        return _MISSING
    form, convert = _PLAIN[kind]
    parts = content.rstrip(b" \0" if form is _WORDS else b" ").split(b"\\")
    if not all(map(form.fullmatch, parts)):
        return _MISSING
    values = [convert(part) for part in parts]
    return values[0] if len(values) == 1 else values
