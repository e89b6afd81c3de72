"""One pass over an image hospital's files: each is accepted, or refused for a reason; none stops the pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from client.cache import Cache, Known
from client.cells import PLACEHOLDERS, as_path, without_zeros
from client.dicom import Instance
from client.image_child import ImageChild, ImagesHere, Opened
from client.labels import Labels
from client.masks import Masks
from client.preflight import File, Quarantined, Reason
from client.remarks import about_classes, about_keys, about_patients
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
class Survey:
    """What a pass has found so far; files go by the keyed hash of their path, identifiers by theirs."""

    cache: Cache
    images: ImageChild | ImagesHere
    keys: SiteKeys
    labels: Labels
    data: Data
    task: Task
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

    def visit(self, file: File) -> None:
        """Accept or refuse one file, opening it only where what is known of it does not suffice."""
        name = self._hash("path", file.relative)
        self._paths[name] = self._hash("path", as_path(file.relative))
        known = self.cache.recall(name, file.size, file.mtime_ns)
        if known is None or (not known.reason and known.row < 0 and not self._objection(name, known)):
            known = self._read(name, file)
            if known.reason != Reason.DECODER_MISSING:
                self.cache.note(name, known)
        self.known[name] = known
        if known.reason:
            self.quarantined.append(Quarantined(file.relative, known.reason, known.remedy))
            return
        objection = self._objection(name, known)
        key = self._key(name, known)
        self._matched.add(key)
        if objection:
            cells, _ = self._rows.get(key, ((), None))
            self.quarantined.append(
                Quarantined(file.relative, objection, remedy_of(objection, cells, self.task))
            )
            return
        self._instances.add(known.SOPInstanceUID)
        cells, side = self._rows[key]
        target = target_of(cells, self.task)
        assert not isinstance(target, Reason)  # noqa: S101 - _objection has seen to it
        said = f"label {json.dumps(cells)}"
        try:
            if self.masks:
                said = f"mask {self.masks.take(name, file, str(target))}"
        except Refused as refusal:
            self.quarantined.append(Quarantined(file.relative, refusal.reason, refusal.remedy))
            return
        self.accepted[name] = Accepted(target, keyed_hash(self.keys.file, said), side)

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

    def _read(self, name: str, file: File) -> Known:
        """Open a file once: its header, and its pixels where its label can be used."""
        known = Known(file.size, file.mtime_ns)
        pixels = None
        try:
            with self.images.open(file.path) as instance:
                known = self._identified(known, instance)
                if not self._objection(name, known):
                    pixels = instance.pixels(size=self.data.image_size, channels=self.data.channels)
        except Refused as refusal:
            return replace(known, reason=refusal.reason, remedy=refusal.remedy)
        if pixels is None:
            return known
        return replace(known, content=content_of(self.keys, Path(file.path)), row=self.cache.append(pixels))

    def _identified(self, known: Known, instance: Opened | Instance) -> Known:
        """Return `known` with keyed hashes; without PatientID, each study is a patient of its own."""
        patient = instance.PatientID or instance.StudyInstanceUID or instance.SOPInstanceUID
        return replace(
            known,
            SOPInstanceUID=self._hash("SOPInstanceUID", instance.SOPInstanceUID),
            StudyInstanceUID=self._hash("StudyInstanceUID", instance.StudyInstanceUID),
            AccessionNumber=self._hash("AccessionNumber", instance.AccessionNumber),
            patient=keyed_hash(self.keys.patient, patient),
            fraction=fraction(self.keys.split, patient),
            alike=keyed_hash(self.keys.patient, f"alike {without_zeros(instance.PatientID)}")
            if instance.PatientID
            else "",
        )

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
