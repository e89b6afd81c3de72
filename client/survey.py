"""One pass over an image hospital's files: each is accepted, or refused for a reason; none stops the pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from client.cache import Cache, Known
from client.image_child import ImageChild, Opened
from client.masks import Masks
from client.preflight import REMEDIES, File, Quarantined, Reason
from client.split import SiteKeys, content_of, fraction, keyed_hash
from client.tables import Labels
from client.targets import Target, stacked, target_of
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
    images: ImageChild
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
        self._unmatched = set(self._rows)
        self._instances: set[str] = set()

    @property
    def unmatched(self) -> int:
        """How many rows of labels.csv name no image."""
        return len(self._unmatched)

    def visit(self, file: File) -> None:
        """Accept or refuse one file, opening it only where what is known of it does not suffice."""
        name = self._hash("path", file.relative)
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
        self._unmatched.discard(key)
        if objection:
            self.quarantined.append(Quarantined(file.relative, objection, REMEDIES[objection]))
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

    def _identified(self, known: Known, instance: Opened) -> Known:
        """Return `known` with keyed hashes; without PatientID, each study is a patient of its own."""
        patient = instance.PatientID or instance.StudyInstanceUID or instance.SOPInstanceUID
        return replace(
            known,
            SOPInstanceUID=self._hash("SOPInstanceUID", instance.SOPInstanceUID),
            StudyInstanceUID=self._hash("StudyInstanceUID", instance.StudyInstanceUID),
            AccessionNumber=self._hash("AccessionNumber", instance.AccessionNumber),
            patient=keyed_hash(self.keys.patient, patient),
            fraction=fraction(self.keys.split, patient),
        )

    def _objection(self, name: str, known: Known) -> Reason | None:
        """Return why a readable image is left out all the same; depends on labels.csv, so never cached."""
        if known.SOPInstanceUID in self._instances:
            return Reason.DUPLICATE
        cells, _ = self._rows.get(self._key(name, known), (("",), None))
        target = target_of(cells, self.task)
        return target if isinstance(target, Reason) else None

    def _key(self, name: str, known: Known) -> str:
        return name if self.labels.key == "path" else str(getattr(known, self.labels.key))

    def _hash(self, kind: str, text: str) -> str:
        return keyed_hash(self.keys.file, f"{kind} {text}") if text else ""
