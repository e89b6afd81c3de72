"""`zamenis-simulate`: the whole federation on one machine."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from common import config as configuration
from common import terminal
from common.config import Config
from common.errors import ConfigError
from common.terminal import ConsoleProgress, console

DEMO = Path(__file__).with_name("demo.toml")
"""The demonstration's configuration."""
Hospitals = Annotated[Path, typer.Argument(help="Where the hospitals' folders go.")]
SiteColumn = Annotated[str, typer.Option(help="Column with the hospital.")]
PatientColumn = Annotated[str | None, typer.Option(help="Column with the patient; without it, one each.")]
SplitSeed = Annotated[int, typer.Option(min=0, help="Decides each hospital's patient split.")]

app = terminal.command_line(
    "Meta-learn across hospitals on this machine. Without a command: the demonstration."
)


class EngineName(StrEnum):
    """Where the computing happens."""

    inprocess = "inprocess"
    ray = "ray"


def main() -> None:
    """Run the command line."""
    terminal.run(
        app, interrupted="Interrupted. What is finished is kept; --resume the run's folder to go on."
    )


@app.callback(invoke_without_command=True, no_args_is_help=False)
def demo(context: typer.Context, version: terminal.Version = False) -> None:
    """Run the demonstration when no command is given."""
    if context.invoked_subcommand is None:
        run()


ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file; without it, the demonstration's.")]
Engine = Annotated[EngineName | None, typer.Option(help="Where the computing happens.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes of one thread each; 0: one per core.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default results/run-N.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Decides everything random.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.rounds=50.")
]


@app.command()
def run(
    config: ConfigFile = None,
    engine: Engine = None,
    workers: Workers = None,
    out: Out = None,
    seed: Seed = None,
    set_: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run's folder.")] = None,
) -> None:
    """Meta-train, hold each hospital out in turn, adapt with K cases, and report."""
    if resume and (config or out or seed is not None or set_):
        raise ConfigError("--resume goes on with a run as it is; only --engine and --workers go with it.")
    overrides = _overrides(set_, seed, engine, workers)
    loaded = configuration.load(resume / "config.toml" if resume else config or DEMO, overrides)
    folder = resume or _fresh(out)
    _tell(_simulate(loaded, folder), folder)


@app.command()
def compare(
    algorithms: Annotated[
        str, typer.Option(metavar="A,B,C", help="Algorithms; the first is set against each other one.")
    ],
    config: ConfigFile = None,
    budget: Annotated[
        bool, typer.Option("--budget", help="Give all as many gradient steps as the first takes.")
    ] = False,
    engine: Engine = None,
    workers: Workers = None,
    out: Out = None,
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Run several algorithms on the same seeds and draws, and report their paired differences."""
    from simulation import compare as comparison

    path = config or DEMO
    overrides = [*_overrides(set_, seed, engine, workers), *comparison.overrides(algorithms)]
    loaded = configuration.load(path, overrides)
    if budget:
        loaded = configuration.load(path, [*overrides, *comparison.equal_budget(loaded)])
    folder = _fresh(out)
    results = _simulate(loaded, folder)
    _tell(results, folder)
    console.print(comparison.difference_table(results))
    console.print(comparison.budget_line(results), highlight=False)


@app.command()
def rehearse(
    config: ConfigFile = None,
    sites: Annotated[int | None, typer.Option(min=2, help="How many phantom hospitals.")] = None,
    out: Out = None,
    set_: Set = None,
) -> None:
    """Run it for real on this machine: a coordinator, hospitals with keys of their own, TLS between them."""
    terminal.require_linux("zamenis-simulate rehearse")
    from simulation.rehearse import rehearse as perform

    overrides = [*(set_ or []), *([] if sites is None else [f"phantoms.sites={sites}"])]
    loaded = _absolute(configuration.load(config or DEMO, overrides))
    with ConsoleProgress() as progress:
        folder = perform(loaded, _fresh(out), progress)
    _tell(json.loads((folder / "results.json").read_text(encoding="utf-8")), folder)
    console.print(f"The logs of both sides are in {folder / 'logs'}.", highlight=False, soft_wrap=True)


@app.command()
def attack(
    config: Annotated[Path | None, typer.Argument(help="TOML file; without it, the demonstration's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default results/run-N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides everything random but secrets.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.rounds=50."),
    ] = None,
) -> None:
    """Show what a curious coordinator gets of one hospital, with and without secure aggregation."""
    from simulation.attack.page import result_table
    from simulation.attack.run import attack as perform

    overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
    loaded = _absolute(configuration.load(config or DEMO, overrides))
    folder = _fresh(out)
    with ConsoleProgress() as progress:
        found = perform(loaded, folder, progress, command=_command())
    console.print(result_table(found))
    for name in ("attack.html", "attack.json"):
        console.print(f"{name:<12} {folder / name}", highlight=False, soft_wrap=True)


@app.command()
def phantoms(
    folder: Hospitals,
    sites: Annotated[int, typer.Option(min=1, help="How many hospitals.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
    patients: Annotated[int | None, typer.Option(min=1, help="Patients per hospital.")] = None,
) -> None:
    """Write synthetic hospitals as DICOM trees with labels."""
    from simulation.phantoms import write_hospitals

    overrides = [f"phantoms.sites={sites}"] + ([] if patients is None else [f"phantoms.patients={patients}"])
    loaded = configuration.load(None, overrides)
    with ConsoleProgress() as progress:
        step = progress.phase("Writing phantom hospitals", sites)
        written = write_hospitals(
            folder, loaded.phantoms, seed=seed, classes=loaded.task.classes, progress=lambda *_: step()
        )
    _tell_hospitals(written)


@app.command("import-images")
def import_images(
    table: Annotated[Path, typer.Argument(help="CSV with one row per image.")],
    folder: Hospitals,
    path_column: Annotated[str, typer.Option(help="Column with the image's path, relative to the CSV.")],
    site_column: SiteColumn,
    label_column: Annotated[
        list[str] | None, typer.Option(help="Column with a label; may be repeated.")
    ] = None,
    mask_column: Annotated[
        list[str] | None, typer.Option(help="Column with the path of a mask's image; may be repeated.")
    ] = None,
    patient_column: PatientColumn = None,
    seed: SplitSeed = 0,
) -> None:
    """Turn an image folder and its CSV into one DICOM tree per hospital."""
    from simulation import sites

    if not label_column and not mask_column:
        raise ConfigError("name what is to be learned: --label-column, --mask-column, or both.")
    with ConsoleProgress() as progress:
        written = sites.import_images(
            table,
            folder,
            path_column=path_column,
            site_column=site_column,
            label_columns=label_column or [],
            mask_columns=mask_column or [],
            patient_column=patient_column,
            seed=seed,
            progress=progress.counter("Writing DICOM"),
        )
    _tell_hospitals(written)


@app.command("import-table")
def import_table(
    table: Annotated[Path, typer.Argument(help="CSV with one row per case.")],
    folder: Hospitals,
    site_column: SiteColumn,
    label_column: Annotated[str, typer.Option(help="Column with the label.")],
    numeric: Annotated[
        list[str] | None, typer.Option(help="Numeric column; may be repeated; none: all.")
    ] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="Categorical column; may be repeated.")
    ] = None,
    missing: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=CODE", help="Code for not measured, e.g. chol=0.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column to leave out; may be repeated.")] = None,
    patient_column: PatientColumn = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that says adaptation (train) or test.")
    ] = None,
    event_column: Annotated[
        str | None, typer.Option(help="Column with 1 where follow-up ended with the event, else 0.")
    ] = None,
    time_column: Annotated[str | None, typer.Option(help="Column with the length of follow-up.")] = None,
    horizon: Annotated[
        float | None,
        typer.Option(min=0, help="Makes the label: 1 for the event by then, in the time's unit."),
    ] = None,
    join: Annotated[Path | None, typer.Option(help="Another CSV, whose columns are added.")] = None,
    on: Annotated[str | None, typer.Option(help="Column that both files have, to join them by.")] = None,
    seed: SplitSeed = 0,
) -> None:
    """Turn a CSV with a hospital column into one table per hospital."""
    from simulation import tables
    from simulation.follow_up import FollowUp

    follow_up = None
    if event_column and time_column and horizon is not None:
        follow_up = FollowUp(event_column, time_column, horizon)
    elif event_column or time_column or horizon is not None:
        raise ConfigError("--event-column, --time-column and --horizon go together; give all three.")
    if (join is None) != (on is None):
        raise ConfigError("--join FILE and --on COLUMN go together; give both.")
    written = tables.import_table(
        table,
        folder,
        site_column=site_column,
        label_column=label_column,
        numeric=numeric or [],
        categorical=categorical or [],
        missing=_codes(missing or []),
        patient_column=patient_column,
        split_column=split_column,
        seed=seed,
        drop=drop or [],
        follow_up=follow_up,
        joined=(join, on) if join and on else None,
    )
    _tell_hospitals(written)


@app.command("import-molecules")
def import_molecules(
    table: Annotated[Path, typer.Argument(help="CSV with one row per molecule.")],
    folder: Annotated[Path, typer.Argument(help="Where the assays' folders go.")],
    smiles_column: Annotated[str, typer.Option(help="Column with the molecule's SMILES.")],
    assays: Annotated[
        str, typer.Option(metavar="A,B,C", help="Columns of 0, 1 or nothing; without it, all such.")
    ] = "",
    id_column: Annotated[
        str | None, typer.Option(help="Column with the molecule's name; without it, its SMILES.")
    ] = None,
    bits: Annotated[int, typer.Option(min=8, help="Bits of a fingerprint, a multiple of 8.")] = 1024,
    radius: Annotated[
        int, typer.Option(min=0, help="Bonds around an atom that a bit covers; 2 is ECFP4.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Decides the split, the same for all assays.")] = 0,
) -> None:
    """Turn a CSV of SMILES with toxicity assays into one table of fingerprints per assay."""
    from simulation import molecules

    written = molecules.import_molecules(
        table,
        folder,
        smiles_column=smiles_column,
        assays=terminal.listed(assays),
        id_column=id_column,
        fingerprint=molecules.Fingerprint(bits, radius),
        seed=seed,
    )
    _tell_hospitals(written)


def _overrides(
    set_: list[str] | None, seed: int | None, engine: EngineName | None, workers: int | None
) -> list[str]:
    """Return what the options say as settings; the later win."""
    overrides = list(set_ or [])
    overrides += [] if seed is None else [f"seed={seed}"]
    overrides += [] if engine is None else [f'engine.name="{engine.value}"']
    overrides += [] if workers is None else [f"engine.workers={workers}"]
    return overrides


def _simulate(config: Config, folder: Path) -> dict[str, Any]:
    from simulation.run import simulate

    with ConsoleProgress() as progress:
        return dict(simulate(_absolute(config), folder, progress, command=_command()))


def _fresh(out: Path | None) -> Path:
    """Return the folder for a new run; one that holds a run already is never overwritten."""
    if out is None:
        return next(
            folder
            for number in range(1, 10**6)
            if not (folder := Path("results") / f"run-{number:03}").exists()
        )
    if (out / "training").exists() or (out / "results.json").exists():
        raise ConfigError(
            f"--out {out} holds a run already; --resume {out} to go on, or name another folder."
        )
    return out


def _absolute(config: Config) -> Config:
    """Return the configuration with its hospitals' folder named from the root, so that a resume finds it."""
    if not config.data.hospitals:
        return config
    parent = str(Path(config.data.hospitals).expanduser().resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"hospitals": parent})})


def _codes(given: list[str]) -> dict[str, list[str]]:
    codes: dict[str, list[str]] = {}
    for text in given:
        column, equals, code = text.partition("=")
        if not (column and equals and code):
            raise ConfigError(f"--missing {text}: must read COLUMN=CODE, e.g. chol=0.")
        codes.setdefault(column, []).append(code)
    return codes


def _command() -> str:
    return shlex.join(["zamenis-simulate", *sys.argv[1:]])


def _tell(results: Any, folder: Path) -> None:
    from server.report.console import tell

    tell(console, results, folder)


def _tell_hospitals(written: list[Path]) -> None:
    for folder in written:
        console.print(f"  {folder}", highlight=False)
