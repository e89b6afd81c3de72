"""One run of the simulator from a configuration to its folder of results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from client.site import NodeConfig
from common.config import Config
from common.errors import ConfigError, DataError, TooSmallError
from common.files import write_text
from server.experiment.conduct import Outcome, Progress, conduct, pool_name
from server.experiment.plan import Plan
from server.experiment.results import results
from server.logs import log_to
from server.report.files import write_results
from simulation.curves import curves
from simulation.engines import run as run_on
from simulation.engines import workers_of
from simulation.examples import example_masks
from simulation.phantoms import write_hospitals
from simulation.secrets import make_secrets

logger = logging.getLogger("zamenis.simulation")
PREDICTIONS = "predictions"
"""The folder of a run in which its hospitals keep what they predict."""


def simulate(config: Config, out: Path, progress: Progress, *, command: str) -> Mapping[str, Any]:
    """Run `config`'s experiment; leave config.toml, results.json, phi.safetensors and more in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    log_to(out / "run.log")
    folders = hospital_folders(config, out, progress)
    write_text(out / "config.toml", config.to_toml())
    outcome, nodes, left_out = _without_small_ones(config, out, progress, folders)
    found = results(config, outcome, command=command, workers=workers_of(config.engine))
    too_small = [{"site": site, "shot": None, "reason": why} for site, why in sorted(left_out.items())]
    found["left_out"] = [*too_small, *found["left_out"]]
    found["curves"] = curves(config, found["rows"], out / PREDICTIONS)
    pictures = example_masks(config, outcome, nodes) if config.kind.maps else []
    write_results(found, out, pictures)
    return found


def _without_small_ones(
    config: Config, out: Path, progress: Progress, folders: Sequence[Path]
) -> tuple[Outcome, list[NodeConfig], dict[str, str]]:
    """Return the outcome over the hospitals with enough patients, their nodes, and why others are left out.

    Pools are made of whom the run is over, so that it begins anew without those that are too small.
    """
    left_out: dict[str, str] = {}
    while True:
        taking_part = [folder for folder in folders if folder.name not in left_out]
        try:
            held_out = Plan(config, [folder.name for folder in taking_part]).held_out
        except ConfigError as error:
            away = "".join(f"\n{site}: {why}." for site, why in left_out.items())
            raise ConfigError(f"{error}{' Left out:' if away else ''}{away}") from error
        nodes = _with_predictions(config, out, nodes_of(config, taking_part, held_out))
        nodes, identities = _with_secrets(config, out, nodes, taking_part)
        program = partial(conduct, config=config, out=out, progress=progress, identities=identities)
        try:
            return run_on(program, nodes, config.engine), nodes, left_out
        except TooSmallError as error:
            told = _by_site(error, taking_part)
        for site, why in told.items():
            logger.warning("%s is left out: %s", site, why)
        left_out |= told


def _by_site(error: TooSmallError, folders: Sequence[Path]) -> dict[str, str]:
    """Return per hospital why it is too small. DataError: none of them is, but what they are together."""
    told = {
        folder.name: line.removeprefix(f"{folder.name}: ").rstrip(".")
        for line in str(error).splitlines()
        for folder in folders
        if line.startswith(f"{folder.name}: ")
    }
    if not told:
        raise DataError(str(error))
    return told


def _with_predictions(config: Config, out: Path, nodes: list[NodeConfig]) -> list[NodeConfig]:
    """Return the nodes with where they keep what they predict, in tasks that curves can be drawn of."""
    if config.kind.questions is None:
        return nodes
    return [{**node, "predictions": str((out / PREDICTIONS).resolve())} for node in nodes]


def _with_secrets(
    config: Config, out: Path, nodes: list[NodeConfig], folders: Sequence[Path]
) -> tuple[list[NodeConfig], Mapping[str, bytes] | None]:
    """Return the nodes with what they mask with, and everybody's public keys, where a simulation masks."""
    if config.secure_aggregation.where != "everywhere":
        return nodes, None
    identities = make_secrets(out / "secrets", [folder.name for folder in folders])
    secret = {site: str(out / "secrets" / site) for site in identities}
    return [
        {**node, "secrets": secret[str(node["site"])]} if node["site"] in secret else node for node in nodes
    ], identities


def hospital_folders(config: Config, out: Path, progress: Progress) -> list[Path]:
    """Return the hospitals' folders; phantom hospitals are written first where none are named."""
    if not config.data.hospitals:
        if config.task.kind != "classification":
            raise ConfigError(
                f"phantom hospitals have classes, and nothing for {config.task.kind}; name a folder with "
                "hospitals in data.hospitals."
            )
        step = progress.phase("Writing phantom hospitals", config.phantoms.sites)
        return write_hospitals(
            out / "hospitals",
            config.phantoms,
            seed=config.seed,
            classes=config.task.classes,
            progress=lambda done, total: step(),
        )
    return hospitals_in(Path(config.data.hospitals))


def hospitals_in(parent: Path) -> list[Path]:
    """Return the hospitals' folders in `parent`. Raises ConfigError where there is none."""
    folders = sorted(one for one in parent.iterdir() if one.is_dir()) if parent.is_dir() else []
    folders = [one for one in folders if not one.name.startswith(".")]
    if not folders:
        raise ConfigError(
            f"data.hospitals {parent} holds no hospital; name a folder with one folder per hospital "
            "(zamenis-simulate import-images, import-table and phantoms write such folders)."
        )
    return folders


def nodes_of(config: Config, folders: list[Path], held_out: list[str]) -> list[NodeConfig]:
    """Return one node per hospital, and one for each pool of hospitals that a pooled bound needs."""
    by_name = {folder.name: folder for folder in folders}
    nodes = [_node(config, name, [folder]) for name, folder in by_name.items()]
    if "pooled" in config.experiment.algorithms:
        for site in held_out:
            others = [folder for name, folder in by_name.items() if name != site]
            nodes.append(_node(config, pool_name((site,)), others))
    return nodes


def _node(config: Config, site: str, folders: list[Path]) -> NodeConfig:
    return {
        "site": site,
        "hospital": "\n".join(str(folder.resolve()) for folder in folders),
        "shares": "\n".join([str(config.data.adaptation_share)] * len(folders)),
        "device": config.engine.device,
        "threads": 1,
    }
