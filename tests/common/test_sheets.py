"""Comma-separated text: what is read, how what is wrong with it is named, and cells that stay text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.sheets import read_lines, to_csv

UMLAUTS = "path,befund\na.dcm,unauffällig\nb.dcm,Größe verändert\n"
CHINESE = "path,结果\na.dcm,正常\nb.dcm,胸腔积液\n"


def written(folder: Path, content: bytes) -> Path:
    """Write a file."""
    path = folder / "labels.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("text", [UMLAUTS, CHINESE])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_utf_8_is_read_with_and_without_its_mark(tmp_path: Path, text: str, mark: str) -> None:
    """Umlauts and Chinese characters are what they were; lines count from 1."""
    read = read_lines(written(tmp_path, (mark + text).encode()))
    assert [",".join(cells) for _, cells in read] == text.splitlines()
    assert [line for line, _ in read] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "encoding", "line", "told"),
    [
        (UMLAUTS, "latin-1", 2, "WINDOWS-1252"),
        (UMLAUTS, "cp1252", 2, "WINDOWS-1252"),
        ("path,x\na,Größe\n", "latin-1", 2, "WINDOWS-1252"),
        ("path,x\na,ja\nb,übermäßig\n", "latin-1", 3, "WINDOWS-1252"),
        ("path,diagnostic\na,épanchement\n", "latin-1", 2, "WINDOWS-1252"),
        (CHINESE, "gb18030", 1, "GB18030"),
        ("path,x\na,正常\n", "gbk", 2, "GB18030"),
        (UMLAUTS, "utf-16", 1, "UTF-16"),
        (CHINESE, "utf-16", 1, "UTF-16"),
        (UMLAUTS, "utf-16-le", 1, "UTF-16LE"),
        (UMLAUTS, "utf-16-be", 1, "UTF-16BE"),
    ],
)
def test_another_encoding_is_named_with_line_and_remedy(
    tmp_path: Path, text: str, encoding: str, line: int, told: str
) -> None:
    """The line is the first that is not UTF-8; the content is not told."""
    with pytest.raises(DataError, match=rf"line {line}: is not UTF-8; it reads as {told}\.") as error:
        read_lines(written(tmp_path, text.encode(encoding)))
    assert f"iconv -f {told} -t UTF-8" in str(error.value)
    assert "CSV UTF-8" in str(error.value)
    assert text.encode(encoding).decode(told if told != "WINDOWS-1252" else "cp1252").lstrip("\ufeff") == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id;age;disease\n1;3,5;0\n", "separated by semicolons.*decimals by points"),
        ("id\tage\tdisease\n1\t3,5\t0\n", "separated by tabs"),
        ("id|age|disease\n1|3|0\n", "separated by vertical bars"),
        ("sep=;\nid;age\n1;2\n", "begins with sep="),
        ('"sep=;"\nid;age\n1;2\n', "begins with sep="),
        ('id,"a;b;c;d",age\n1,2,3\n', None),
        ("id,age\n1,2\n", None),
        ("id\n1\n", None),
    ],
)
def test_another_separator_is_named_with_its_remedy(tmp_path: Path, text: str, told: str | None) -> None:
    """By the header alone; separators within quotation marks are none."""
    path = written(tmp_path, text.encode())
    if told is None:
        read_lines(path)
        return
    with pytest.raises(DataError, match=told) as error:
        read_lines(path)
    assert "comma delimited" in str(error.value)


def test_a_file_that_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    """It is not said to be of another encoding."""
    with pytest.raises(DataError, match="there is no such file"):
        read_lines(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_lines(tmp_path)


@pytest.mark.parametrize("begins", [b"PK\x03\x04\x14\0", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_workbook_that_is_called_csv_is_named(tmp_path: Path, begins: bytes) -> None:
    """An xlsx or xls whose name alone was changed."""
    with pytest.raises(DataError, match=r"is a spreadsheet's own file and no CSV.*CSV UTF-8"):
        read_lines(written(tmp_path, begins + b"\0" * 100))


def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path: Path) -> None:
    """It takes in all that follows, up to the longest cell that is read."""
    with pytest.raises(DataError, match="a quotation mark"):
        read_lines(written(tmp_path, b'path,x\na,"b\n' + b"c,d\n" * 50_000))


@pytest.mark.parametrize(
    "cell", ["=1+1", "+x", "-x", "@SUM(A1)", " =1", "-", "=HYPERLINK(1)", "\uff1dA1", "-1+2"]
)
def test_what_a_spreadsheet_would_compute_is_marked_as_text(cell: str) -> None:
    """Each begins with an apostrophe, which spreadsheets take for "this is text"."""
    ((written_cell,),) = csv.reader(io.StringIO(to_csv([(cell,)])))
    assert written_cell == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1", "+1.5", "-.5e-3", "1", "a=b", "'quoted'", "", "正常"])
def test_numbers_and_words_are_written_as_they_are(cell: str) -> None:
    """A negative number is no formula."""
    ((written_cell,),) = csv.reader(io.StringIO(to_csv([(cell or "x",)])))
    assert written_cell == (cell or "x")


@given(st.lists(st.text(alphabet="'=+-@1a.;,\"\u00fc\u6b63 \uff1d", min_size=1), min_size=1))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    """Whatever cells hold, but for blanks around them."""
    path = tmp_path_factory.mktemp("sheet") / "a.csv"
    path.write_text(to_csv([("header",) * len(cells), ["x", *cells[1:]]]), encoding="utf-8", newline="")
    (_, (_, read)) = read_lines(path)
    assert list(read) == ["x", *(cell.strip() for cell in cells[1:])]
