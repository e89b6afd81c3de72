"""Which images of a study count: the hospital's choice of series, and one image of each X-ray exposure.

images.toml beside labels.csv chooses (see docs/data.md). What one file's header settles is settled at once;
what hangs on a study's other files waits until all headers are known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from client.cache import Known
from client.header import Header
from client.preflight import Reason
from common.sections import Section
from common.settings import read_toml, validate


class Series(Section):
    """[series]: which series count, and which of their images. Without it all do."""

    modality: tuple[str, ...] = ()
    """Values of Modality; empty: all."""
    description: tuple[str, ...] = ()
    """Patterns of SeriesDescription with * and ?, in either case; one that fits is enough; empty: all."""
    thickness: tuple[float, float] | None = None
    """Least and most SliceThickness, mm."""
    one_per_study: bool = False
    """Of a study's series that are left, the one with the most images; of equals the first by path."""
    take: Literal["every", "middle"] = "every"
    """Which images of a series: every one, or the one in the middle."""

    @model_validator(mode="after")
    def _in_order(self) -> Series:
        if self.thickness and not 0 <= self.thickness[0] <= self.thickness[1]:
            raise ValueError("must have a thickness of [least, most] in mm, such as [0.5, 3.0]")
        return self

    def takes(self, header: Header) -> bool:
        """Return whether an image is of a series that counts, as far as its own header tells."""
        if self.modality and header.Modality not in self.modality:
            return False
        said = header.SeriesDescription.casefold()
        if self.description and not any(fnmatchcase(said, one.casefold()) for one in self.description):
            return False
        if self.thickness is None:
            return True
        least, most = self.thickness
        return header.SliceThickness is not None and least <= header.SliceThickness <= most

    @property
    def compares(self) -> bool:
        """Whether an image's neighbours decide as well."""
        return self.one_per_study or self.take == "middle"


EVERY_SERIES = Series()


class Images(Section):
    """images.toml: what a folder of images holds, in the hospital's own words."""

    series: Series = EVERY_SERIES


def images_toml(labels: Path) -> Path:
    """Return the file that describes the images of a labels.csv."""
    return labels.with_name("images.toml")


def read_series(labels: Path) -> Series:
    """Return the choice of series for the images of a labels.csv; ConfigError where it is wrong."""
    path = images_toml(labels)
    return validate(Images, read_toml(path), str(path)).series if path.exists() else EVERY_SERIES


def left_out(choice: Series, waiting: Mapping[str, Known], shown: Iterable[str]) -> dict[str, Reason]:
    """Return why images are left out because of others, by name; `waiting` is in the order of paths.

    `shown` are the exposures of images that count already.
    """
    refused: dict[str, Reason] = {}
    seen = set(shown)
    seen.update(*(one.exposures.split() for one in waiting.values() if not one.for_processing))
    for name, one in waiting.items():
        if one.for_processing and seen.intersection(one.exposures.split()):
            refused[name] = Reason.FOR_PROCESSING
    left = {name: one for name, one in waiting.items() if name not in refused}
    if choice.one_per_study:
        refused |= dict.fromkeys(_beside_the_largest(left), Reason.OTHER_SERIES)
    if choice.take == "middle":
        left = {name: one for name, one in left.items() if name not in refused}
        refused |= dict.fromkeys(_beside_the_middle(left), Reason.OTHER_IMAGE)
    return refused


def _beside_the_largest(images: Mapping[str, Known]) -> list[str]:
    """Return the images that are not of their study's largest series."""
    studies = {name: one.StudyInstanceUID or name for name, one in images.items()}
    sizes = Counter((studies[name], one.series) for name, one in images.items())
    largest: dict[str, str] = {}
    for study, series in sizes:
        if study not in largest or sizes[study, series] > sizes[study, largest[study]]:
            largest[study] = series
    return [name for name, one in images.items() if one.series != largest[studies[name]]]


def _beside_the_middle(images: Mapping[str, Known]) -> list[str]:
    """Return the images that are not in the middle of their series, by place (of n, number n // 2 from 0)."""
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, one in images.items():
        members[one.StudyInstanceUID or name, one.series].append(name)
    others = []
    for names in members.values():
        names.sort(key=lambda name: images[name].place)
        others += [name for place, name in enumerate(names) if place != len(names) // 2]
    return others
