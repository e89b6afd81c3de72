"""No file stops a pass: what kills a decoder, keeps it busy or unpacks without end is refused."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from client import image_child
from client.dicom import open_instance, read_image
from client.image_child import ImageChild, ImageChildren
from common.errors import Refused
from tests.client.dicom_files import dataset, write

PIXELS = (np.arange(70 * 60).reshape(70, 60) % 251).astype(np.uint8)


def test_a_child_reads_what_its_parent_would(tmp_path: Path) -> None:
    """The same identifiers and bits; and a header alone, as of a file without a label."""
    write(tmp_path / "a.dcm", PIXELS, PatientID="Secret^1", AccessionNumber="7")
    expected = read_image(tmp_path / "a.dcm", size=32, channels=3)
    with ImageChild() as images:
        with images.open(tmp_path / "a.dcm") as image:
            assert (image.header.PatientID, image.header.AccessionNumber) == ("Secret^1", "7")
            assert "Secret" not in repr(image)
        with images.open(tmp_path / "a.dcm") as image:
            assert torch.equal(image.pixels(size=32, channels=3), expected.pixels)
            assert image.header.to_json() == expected.header.to_json()


def test_pixels_that_nobody_waits_for_are_nobody_elses(tmp_path: Path) -> None:
    """Asked for and then given up, they are not taken for those of the next file."""
    write(tmp_path / "a.dcm", PIXELS)
    write(tmp_path / "b.dcm", PIXELS[::-1].copy())
    expected = read_image(tmp_path / "b.dcm", size=32, channels=1).pixels
    with ImageChild() as images:
        with images.open(tmp_path / "a.dcm") as image:
            image.ask(size=32, channels=1)
        with images.open(tmp_path / "b.dcm") as image:
            pixels = image.ask(size=32, channels=1)
            assert torch.equal(pixels(), expected)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe would keep its reader waiting for whoever writes to it; a link may lead nowhere."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    began = time.monotonic()
    with ImageChild() as images:
        for name in ("pipe", "link"):
            with (
                pytest.raises(Refused, match="unreadable: Remove it") as refusal,
                images.open(tmp_path / name),
            ):
                pass
            assert refusal.value.reason == "unreadable"
    assert time.monotonic() - began < image_child.PATIENCE / 4


def test_a_child_that_dies_costs_the_file_that_it_had_open(tmp_path: Path) -> None:
    """As when a decoder aborts; the next file is read by another child."""
    write(tmp_path / "a.dcm", PIXELS)
    with ImageChild() as images:
        with images.open(tmp_path / "a.dcm") as image:
            os.kill(images._child, signal.SIGABRT)
            with pytest.raises(Refused, match="unreadable"):
                image.pixels(size=32, channels=1)
        with images.open(tmp_path / "a.dcm") as image:
            assert image.pixels(size=32, channels=1).shape == (1, 32, 32)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes /proc")
def test_a_child_has_nothing_open_but_its_file(tmp_path: Path) -> None:
    """Of its parent's files, pipes and other children a decoder that a file takes over has none."""
    write(tmp_path / "a.dcm", PIXELS)
    with (
        (tmp_path / "secret").open("w"),
        ImageChild() as other,
        ImageChild() as images,
        other.open(tmp_path / "a.dcm") as first,
        images.open(tmp_path / "a.dcm") as image,
    ):
        assert first.header.to_json() == image.header.to_json()
        there = Path(f"/proc/{images._child}/fd")
        opened = {int(one.name): os.readlink(one) for one in there.iterdir()}
    files = sorted(where for number, where in opened.items() if number > 2 and not where.startswith("pipe:"))
    assert files == [str(tmp_path / "a.dcm")]
    assert len(opened) - 3 - len(files) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_several_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Each child has a file; one that dies costs the others nothing, and another takes its place."""
    monkeypatch.setattr(image_child, "cores", lambda: count)
    write(tmp_path / "a.dcm", PIXELS, PatientID="P")
    expected = read_image(tmp_path / "a.dcm", size=32, channels=1).pixels
    with ImageChildren() as images:
        assert images.at_once == count
        for _ in range(2):
            with ExitStack() as stack:
                opened = [stack.enter_context(images.open(tmp_path / "a.dcm")) for _ in range(count)]
                assert all(image.header.PatientID == "P" for image in opened)
                os.kill(opened[0]._child._child, signal.SIGABRT)
                answers = [image.ask(size=32, channels=1) for image in opened]
                assert all(torch.equal(answer(), expected) for answer in answers[1:])
                with pytest.raises(Refused, match="unreadable"):
                    answers[0]()


def test_a_file_has_so_much_processor_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the child's own seconds, so that a busy machine refuses nothing; each file has them anew."""
    write(tmp_path / "a.dcm", PIXELS)

    def endless(path: str) -> object:
        while path.endswith("slow.dcm"):
            pass
        return open_instance(path)

    monkeypatch.setattr(image_child, "SECONDS", 0.2)
    monkeypatch.setattr(image_child, "open_instance", endless)
    with ImageChild() as images:
        with pytest.raises(Refused, match="unreadable"), images.open(tmp_path / "slow.dcm"):
            pass
        with images.open(tmp_path / "a.dcm") as image:
            assert image.pixels(size=32, channels=1).isfinite().all()


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deflated data set of 300 kB with one private element of 300 MB."""
    monkeypatch.setattr(image_child, "MEMORY", 2**27)
    image = dataset(PIXELS)
    image.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image.add_new(0x00110010, "LO", "MAKER")
    image.add_new(0x00111001, "OB", bytes(3 * 10**8))
    image.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    assert (tmp_path / "bomb.dcm").stat().st_size < 10**6
    with ImageChild() as images:
        with pytest.raises(Refused, match="unreadable"), images.open(tmp_path / "bomb.dcm"):
            pass
        with images.open(tmp_path / "a.dcm") as small:
            assert small.pixels(size=32, channels=1).isfinite().all()


def encoded() -> dict[str, bytes]:
    """Return a file of each encoding that can be written here."""
    made = {}
    for syntax, kind in (
        (uid.ExplicitVRLittleEndian, ""),
        (uid.ImplicitVRLittleEndian, ""),
        (uid.DeflatedExplicitVRLittleEndian, ""),
        (uid.RLELossless, "rle"),
        (uid.JPEGBaseline8Bit, "JPEG"),
        (uid.JPEG2000Lossless, "JPEG2000"),
    ):
        image = dataset(PIXELS, WindowCenter=100, WindowWidth=80, PixelPaddingValue=0)
        if kind == "rle":
            image.compress(syntax)
        image.file_meta.TransferSyntaxUID = syntax
        if kind.startswith("JPEG"):
            stream = BytesIO()
            Image.fromarray(PIXELS).save(stream, format=kind)
            image.PixelData = encapsulate([stream.getvalue()])
            image["PixelData"].is_undefined_length = True
            image["PixelData"].VR = "OB"
        file = BytesIO()
        image.save_as(file, enforce_file_format=True)
        made[syntax.name] = file.getvalue()
    return made


ENCODED = encoded()


@pytest.mark.parametrize("name", ENCODED)
def test_whatever_is_damaged_is_read_or_refused(tmp_path: Path, name: str) -> None:
    """Bytes changed, cut out, doubled or lost at the end, twelve times an encoding: never anything else."""
    chance, content = random.Random(name), ENCODED[name]
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with ImageChild() as images:
        with images.open(path) as image:
            assert image.pixels(size=32, channels=1).isfinite().all()
        for _ in range(12):
            path.write_bytes(damaged(content, chance))
            try:
                with images.open(path) as image:
                    pixels = image.pixels(size=32, channels=1)
            except Refused:
                continue
            assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file with one fault, as disks, lines and exports make them."""
    changed = bytearray(content)
    at, length = chance.randrange(132, len(content)), chance.randrange(1, 40)
    kind = chance.choice(["bits", "cut", "double", "end", "zeros"])
    if kind == "bits":
        for _ in range(length):
            changed[chance.randrange(132, len(content))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del changed[at : at + length]
    elif kind == "double":
        changed[at:at] = changed[at : at + length]
    elif kind == "end":
        del changed[at:]
    else:
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)
