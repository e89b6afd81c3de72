"""Comma-separated text: what is wrong with it is named; what we write no spreadsheet computes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from common.errors import DataError

Line = tuple[int, tuple[str, ...]]
"""A row's line in its file, where the header is line 1, and its cells without blanks around them."""

BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How files begin that spreadsheets save as their own: xlsx and ods, xls."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SAVE_AS = 'In a spreadsheet: "Save as", "CSV UTF-8 (comma delimited)"'

_TEXT_MARK = "'"
_FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that spreadsheets compute, or that we have marked as text before."""
_MARKED = re.compile(r"'(?=[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_lines(path: Path) -> list[Line]:
    """Return the rows of a comma-separated UTF-8 file, the header first, without empty ones.

    A cell that `to_csv` marked as text is as it was. DataError: it cannot be read, is in another encoding, or
    has another separator; which one, and the remedy.
    """
    text = _text(path)
    _check_separator(path, text)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, tuple(_plain(cell) for cell in cells)) for cells in reader if any(cells)]
    except csv.Error:
        raise DataError(
            f"{path}, line {reader.line_num}: is no comma-separated text; a quotation mark before it may be "
            "opened and never closed. Mend it, or save the file again."
        ) from None
    return rows


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as comma-separated text; what a spreadsheet would compute is marked as text with a '."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_inert(str(cell)) for cell in row] for row in rows)
    return text.getvalue()


def _inert(cell: str) -> str:
    return _TEXT_MARK + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _plain(cell: str) -> str:
    """Return a cell without blanks around it, and without our mark."""
    cell = cell.strip()
    return cell[1:].strip() if _MARKED.match(cell) else cell


def _text(path: Path) -> str:
    """Return a file's text; DataError names its line and encoding where it is not UTF-8."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if content.startswith(WORKBOOKS):
        raise DataError(f"{path}: is a spreadsheet's own file and no CSV, whatever it is called. {SAVE_AS}.")
    if encoding := BYTE_ORDER_MARKS.get(content[:2]) or _utf_16_without_mark(content):
        raise _in_another(path, 1, encoding)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _in_another(path, line, _encoding_of(content)) from None


def _in_another(path: Path, line: int, encoding: str) -> DataError:
    return DataError(
        f"{path}, line {line}: is not UTF-8; it reads as {encoding}. {SAVE_AS}; elsewhere: "
        f"iconv -f {encoding} -t UTF-8 OLD > NEW."
    )


def _utf_16_without_mark(content: bytes) -> str:
    """Return the encoding's name where every other byte at the beginning is zero."""
    head = content[:64]
    if b"\0" not in head:
        return ""
    return "UTF-16BE" if not any(head[::2]) else "UTF-16LE" if not any(head[1::2]) else "binary data"


def _encoding_of(content: bytes) -> str:
    """Return the encoding that bytes beyond ASCII look like.

    Chinese characters are pairs of such bytes, side by side, rarely between two Latin letters; letters with
    an accent are single bytes among plain ones.
    """
    runs = list(islice(re.finditer(rb"[\x80-\xff]+", content), 1000))
    chinese = [run for run in runs if _is_chinese(content, run.start(), run.end())]
    return "GB18030" if 2 * len(chinese) > len(runs) else "WINDOWS-1252"


def _is_chinese(content: bytes, start: int, end: int) -> bool:
    between_letters = content[start - 1 : start].isalpha() and content[end : end + 1].isalpha()
    if (end - start) % 2 or between_letters:
        return False
    try:
        content[start:end].decode("gb18030")
    except UnicodeDecodeError:
        return False
    return True


def _check_separator(path: Path, text: str) -> None:
    """Raise DataError where the first line is for Excel alone, or has more columns by another separator."""
    first = text.split("\n", 1)[0].strip()
    if first.strip('"')[:4].lower() == "sep=":
        raise DataError(
            f"{path}: begins with sep=, which only some spreadsheets read. Take that line out, and separate "
            f"the columns by commas. {SAVE_AS}."
        )
    bare = re.sub(r'"[^"]*"', "", first)
    most = max((",", *SEPARATORS), key=bare.count)
    if bare.count(most) > bare.count(","):
        raise DataError(
            f"{path}: is separated by {SEPARATORS[most]}; columns are separated by commas, and decimals by "
            f"points. {SAVE_AS}, on a computer whose regional format is English."
        )
