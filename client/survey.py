"""One pass over an image hospital's files: each is accepted, or refused for a reason; none stops the pass."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from client.cache import Cache, Known
from client.cells import PLACEHOLDERS, as_path, without_zeros
from client.dicom import Instance
from client.header import Header
from client.image_child import ImageChildren, ImagesHere, Opened
from client.labels import Labels
from client.masks import Masks
from client.preflight import REMEDIES, File, Quarantined, Reason, refuse
from client.remarks import about_classes, about_keys, about_patients
from client.series import EVERY_SERIES, Series, left_out
from client.split import SiteKeys, content_of, fraction, keyed_hash
from client.targets import Target, remedy_of, stacked, target_of
from common.errors import Refused
from common.sections import Data, Task


@dataclass(frozen=True)
class Accepted:
    """What a file's label says, and the side of the split that labels.csv gives it, if any."""

    target: Target
    digest: str
    """Keyed hash of the label, or of its mask's content."""
    side: bool | None


@dataclass
class _Reading:
    """A file on its way through a pass; its header and then its pixels come from another process."""

    name: str
    file: File
    known: Known
    opened: ExitStack | None = None
    """Closes the file; None: what was known of it suffices."""
    instance: Opened | Instance | None = None
    pixels: Callable[[], Tensor] | None = None
    """Waits for them, where they are wanted."""

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Make a refusal what is known of the file."""
        try:
            yield
        except Refused as refusal:
            self.known = replace(self.known, reason=refusal.reason, remedy=refusal.remedy)


@dataclass
class Survey:
    """What a pass has found so far; files go by the keyed hash of their path, identifiers by theirs."""

    cache: Cache
    images: ImageChildren | ImagesHere
    keys: SiteKeys
    labels: Labels
    data: Data
    task: Task
    series: Series = EVERY_SERIES
    """Which of a study's images count."""
    masks: Masks | None = None
    """Where the task is to find masks."""
    known: dict[str, Known] = field(default_factory=dict)
    accepted: dict[str, Accepted] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rows = {self._hash(self.labels.key, key): said for key, said in self.labels.rows.items()}
        self._matched: set[str] = set()
        self._instances: set[str] = set()
        self._paths: dict[str, str] = {}
        self._waiting: dict[str, File] = {}

    @property
    def decided(self) -> int:
        """How many files have been accepted or refused."""
        return len(self.known) - len(self._waiting)

    def remarks(self) -> list[str]:
        """Return what is doubtful about what was found, for the hospital itself."""
        told = self.unmatched()
        patients = [(self.known[name].patient, self.known[name].alike) for name in self.accepted]
        nameless = (keyed_hash(self.keys.patient, f"alike {word}") for word in PLACEHOLDERS)
        cells = [said[0] for said, _ in self.labels.rows.values()]
        return [
            *([told] if told else []),
            *about_classes(cells, self.task),
            *about_patients("PatientID", patients, nameless),
        ]

    def unmatched(self) -> str:
        """Return how many rows of labels.csv name no image, and why that may be; nothing where all do."""
        column, keys = self.labels.key, list(self.labels.rows)
        there = {self._key(name, known) for name, known in self.known.items() if not known.reason}
        missed = [key for key in keys if self._hash(column, key) not in self._matched]
        return about_keys(column, keys, missed, lambda key: self._hash(column, key) in there)

    def why_nothing(self, quarantine: Path) -> str:
        """Return why no file at all could be used, in counts; the file `quarantine` tells them one by one."""
        rows, key = len(self.labels.rows), self.labels.key
        refused = Counter(line.reason for line in self.quarantined)
        if not refused:
            return f"labels.csv has {rows} rows, but the folder holds no image. Add DICOM files."
        counts = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        by_labels = {Reason.MISSING_LABEL, Reason.UNKNOWN_CLASS}
        images = sum(count for reason, count in refused.items() if reason in by_labels)
        if images == refused.get(Reason.MISSING_LABEL) != 0:
            return (
                f"none of {images} images has a label ({counts}): {self.unmatched()}. Check that the {key} "
                f"column holds the images' own {key}; {quarantine} tells which files they are."
            )
        return f"no file can be used ({counts}). {quarantine} tells each remedy."

    def visit(self, files: Iterable[File]) -> Iterator[None]:
        """Accept or refuse each file, or let it wait for the others of its study (`settle`).

        It is opened only where what is known of it does not suffice. Yields after each.
        """
        for name, file, known in self._readings((self._named(file), file) for file in files):
            self.known[name] = known
            self._judge(name, file, known)
            yield

    def _named(self, file: File) -> str:
        name = self._hash("path", file.relative)
        self._paths[name] = self._hash("path", as_path(file.relative))
        return name

    def _judge(self, name: str, file: File, known: Known) -> None:
        if known.reason:
            self._leave_out(file, known.reason, known.remedy)
            return
        objection = self._objection(name, known)
        key = self._key(name, known)
        self._matched.add(key)
        if objection:
            cells, _ = self._rows.get(key, ((), None))
            self._leave_out(file, objection, remedy_of(objection, cells, self.task))
            return
        self._instances.add(known.SOPInstanceUID)
        if self._waits(known):
            self._waiting[name] = file
        else:
            self._accept(name, file)

    def settle(self) -> Iterator[None]:
        """Decide on the files that wait, once all have been visited; yield after each that is read, and all.

        Who is chosen and cannot be read is left out, and the choice made again, so that a later pass, which
        knows of it, chooses the same.
        """
        shown = [one for name in self.accepted for one in self.known[name].exposures.split()]
        while True:
            refused = left_out(self.series, {name: self.known[name] for name in self._waiting}, shown)
            chosen = [name for name in self._waiting if name not in refused]
            unread = [name for name in chosen if self.known[name].row < 0]
            for name, file, known in self._readings((name, self._waiting[name]) for name in unread):
                self.known[name] = known
                if known.reason:
                    del self._waiting[name]
                    self._leave_out(file, known.reason, known.remedy)
                yield
            if not unread:
                break
        waited, self._waiting = self._waiting, {}
        for name, file in waited.items():
            if name in refused:
                self._leave_out(file, refused[name], REMEDIES[refused[name]])
            else:
                self._accept(name, file)
        self.quarantined.sort(key=lambda line: line.file)
        if waited:
            yield

    def _accept(self, name: str, file: File) -> None:
        """Take a file whose pixels are there, with its label."""
        cells, side = self._rows[self._key(name, self.known[name])]
        target = target_of(cells, self.task)
        assert not isinstance(target, Reason)  # noqa: S101 - _objection has seen to it
        said = f"label {json.dumps(cells)}"
        try:
            if self.masks:
                said = f"mask {self.masks.take(name, file, str(target))}"
        except Refused as refusal:
            self._leave_out(file, refusal.reason, refusal.remedy)
            return
        self.accepted[name] = Accepted(target, keyed_hash(self.keys.file, said), side)

    def _leave_out(self, file: File, reason: str, remedy: str) -> None:
        self.quarantined.append(Quarantined(file.relative, reason, remedy))

    def labelled(self, order: Sequence[str]) -> Tensor:
        """Return the labels of `order`."""
        if self.masks:
            return self.masks.arrange(order)
        return stacked([self.accepted[name].target for name in order], self.task)

    def arrange(self, order: Sequence[str]) -> Float[Tensor, "row channel height width"]:
        """Return the pixels of `order`, and let the cache remember this pass.

        A missing decoder is forgotten: it may be installed by next time.
        """
        lasting = {name: one for name, one in self.known.items() if one.reason != Reason.DECODER_MISSING}
        return self.cache.arrange(lasting, order)

    def _readings(self, files: Iterable[tuple[str, File]]) -> Iterator[tuple[str, File, Known]]:
        """Yield what is known of each file, in their order, while those that follow are being read.

        Whoever takes one has decided on it before the next file with its SOPInstanceUID is looked at.
        """
        under_way: deque[_Reading] = deque()
        for name, file in files:
            reading = self._begin(name, file)
            instance = reading.known.SOPInstanceUID
            if not reading.known.reason and any(instance == one.known.SOPInstanceUID for one in under_way):
                while under_way:
                    yield self._conclude(under_way.popleft())
            self._ask(reading)
            under_way.append(reading)
            if len(under_way) >= self.images.at_once:
                yield self._conclude(under_way.popleft())
        while under_way:
            yield self._conclude(under_way.popleft())

    def _begin(self, name: str, file: File) -> _Reading:
        """Recall a file, or open it and read its header."""
        known = self.cache.recall(name, file.size, file.mtime_ns)
        if known and (known.reason or known.row >= 0 or not self._wants_pixels(name, known)):
            return _Reading(name, file, known)
        opened = ExitStack()
        reading = _Reading(name, file, Known(file.size, file.mtime_ns), opened)
        with reading.refusing():
            opening: AbstractContextManager[Opened | Instance] = self.images.open(file.path)
            reading.instance = opened.enter_context(opening)
            reading.known = self._identified(reading.known, reading.instance.header)
        return reading

    def _ask(self, reading: _Reading) -> None:
        """Have an open file's pixels read where they are wanted."""
        if reading.instance is None or reading.known.reason:
            return
        with reading.refusing():
            if not self.series.takes(reading.instance.header):
                raise refuse(Reason.OTHER_SERIES)
            if self._wants_pixels(reading.name, reading.known):
                size, channels = self.data.image_size, self.data.channels
                reading.pixels = reading.instance.ask(size=size, channels=channels)

    def _conclude(self, reading: _Reading) -> tuple[str, File, Known]:
        """Close an open file once its pixels are there; the cache notes what it said."""
        if reading.opened is not None:
            with reading.refusing(), reading.opened:
                if reading.pixels:
                    content = self._content_of(reading.file)
                    row = self.cache.append(reading.pixels())
                    reading.known = replace(reading.known, content=content, row=row)
            if reading.known.reason != Reason.DECODER_MISSING:
                self.cache.note(reading.name, reading.known)
        return reading.name, reading.file, reading.known

    def _content_of(self, file: File) -> str:
        try:
            return content_of(self.keys, Path(file.path))
        except OSError:  # gone meanwhile, or on a disk that fails
            raise refuse(Reason.UNREADABLE) from None

    def _identified(self, known: Known, header: Header) -> Known:
        """Return `known` with keyed hashes; without PatientID, each study is a patient of its own."""
        patient = header.PatientID or header.StudyInstanceUID or header.SOPInstanceUID
        return replace(
            known,
            SOPInstanceUID=self._hash("SOPInstanceUID", header.SOPInstanceUID),
            StudyInstanceUID=self._hash("StudyInstanceUID", header.StudyInstanceUID),
            AccessionNumber=self._hash("AccessionNumber", header.AccessionNumber),
            patient=keyed_hash(self.keys.patient, patient),
            fraction=fraction(self.keys.split, patient),
            series=self._hash("SeriesInstanceUID", header.SeriesInstanceUID),
            place=header.place,
            exposures=" ".join(self._hash("exposure", one) for one in header.exposures),
            for_processing=header.for_processing,
            alike=keyed_hash(self.keys.patient, f"alike {without_zeros(header.PatientID)}")
            if header.PatientID
            else "",
        )

    def _wants_pixels(self, name: str, known: Known) -> bool:
        """Return whether a readable image's pixels are needed by now."""
        return name in self._waiting or not (self._objection(name, known) or self._waits(known))

    def _waits(self, known: Known) -> bool:
        """Return whether other files decide on an image as well."""
        return known.for_processing or self.series.compares

    def _objection(self, name: str, known: Known) -> Reason | None:
        """Return why a readable image is left out all the same; depends on labels.csv, so never cached."""
        if known.SOPInstanceUID in self._instances:
            return Reason.DUPLICATE
        cells, _ = self._rows.get(self._key(name, known), (("",), None))
        target = target_of(cells, self.task)
        return target if isinstance(target, Reason) else None

    def _key(self, name: str, known: Known) -> str:
        return self._paths[name] if self.labels.key == "path" else str(getattr(known, self.labels.key))

    def _hash(self, kind: str, text: str) -> str:
        return keyed_hash(self.keys.file, f"{kind} {text}") if text else ""
