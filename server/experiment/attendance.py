"""Who takes part in a run: everyone in a simulation; over a network, whoever came, and comes back.

A coordinator's run writes down at its first start who took part and with which data. When it is resumed,
a hospital that is away stays part of the run and may come back in any round; one whose data have changed
is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.serverapp import Grid

from common.config import Config
from common.errors import DataError, TooFewError
from common.files import write_text
from common.wire import ABSENT, Description, description_of
from server import evaluation

Sites = dict[str, tuple[int, Description]]
"""Node id and description by site."""


@dataclass(frozen=True)
class Roll:
    """The hospitals that a coordinator knows, and how long it waits for them."""

    names: Mapping[int, str]
    """Site by node id."""
    patience: float
    """Seconds that one question may take."""
    tell: Callable[[str], None]
    """Takes a line for the coordinator: who is left out, and why."""


def attend(grid: Grid, config: Config, out: Path, roll: Roll | None, on_reply: Callable[[], None]) -> Sites:
    """Return the sites of the run in `out`. DataError where someone is missing whom it cannot do without."""
    if roll is None:
        return evaluation.describe(grid, config, on_reply).all_of_them()
    present = evaluation.describe(grid, config, on_reply, names=roll.names, timeout=roll.patience)
    for trouble in (*present.troubles, *_away(grid, roll)):
        roll.tell(trouble)
    path = out / "sites.json"
    if path.exists():
        return _those_of(path, present.sites, roll)
    sites = _of_one_shape(present.sites, roll)
    if not sites:
        raise DataError("no hospital can take part; " + (" ".join(present.troubles) or "none is connected."))
    _refuse_too_few(config, sites, roll)
    told = {site: asdict(description) for site, (_, description) in sites.items()}
    write_text(path, json.dumps(told, indent=1))
    return sites


def _away(grid: Grid, roll: Roll) -> list[str]:
    """Return a line on each hospital that is known and not connected."""
    connected = set(grid.get_node_ids())
    return sorted(f"{site}: {ABSENT}." for node, site in roll.names.items() if node not in connected)


def _refuse_too_few(config: Config, sites: Sites, roll: Roll) -> None:
    """Raise TooFewError where a run would begin with fewer hospitals than its rounds need."""
    least = max(config.training_of(name).min_cohort for name in config.experiment.algorithms)
    if len(sites) < least:
        away = ", ".join(sorted(set(roll.names.values()) - sites.keys()))
        raise TooFewError(
            f"{len(sites)} hospitals take part, and training.min-cohort asks for {least}. Not there: "
            f"{away or 'nobody else is enrolled'}. Resume the run once they are."
        )


def _of_one_shape(sites: Sites, roll: Roll) -> Sites:
    """Return the sites whose cases have the form that most have; the others cannot learn with them."""
    counts = Counter(description.form for _, description in sites.values())
    if len(counts) > 1:
        most, _ = counts.most_common(1)[0]
        usual = next(description for _, description in sites.values() if description.form == most)
        for site, (_, description) in sorted(sites.items()):
            if description.form != most:
                roll.tell(f"{site}: {usual.difference(description, 'most', 'this one')}; left out.")
        sites = {site: one for site, one in sites.items() if one[1].form == most}
    return sites


def _those_of(path: Path, present: Sites, roll: Roll) -> Sites:
    """Return the sites that the run began with, those away included."""
    try:
        begun = {site: description_of(told) for site, told in json.loads(path.read_text()).items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: written by another version of Zamenis; begin another run.") from error
    nodes = {site: node for node, site in roll.names.items()}
    sites: Sites = {}
    for site, description in begun.items():
        if site not in nodes:
            roll.tell(f"{site}: is no longer admitted; its part in this run has ended.")
        elif site in present and present[site][1].digest != description.digest:
            roll.tell(f"{site}: its data have changed since this run began; it is left out.")
        else:
            sites[site] = (nodes[site], description)
    for site in present.keys() - begun.keys():
        roll.tell(f"{site}: joined after this run began; it can take part in the next.")
    if not sites:
        raise DataError("none of the hospitals that this run began with can go on; begin another run.")
    return sites
