"""`zamenis-hospital`: joining a federation, registering data, and running the node."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from client.acquaintance import ask
from client.enrol import join as enrol
from client.home import SERVICE, Home
from client.introductions import not_known, wrapped
from client.meet import confirm, roster, vouch
from client.options import HERE, Directory
from client.policy import policy_of
from client.status import status
from common import service, terminal
from common.errors import EnrolmentError, ServiceError
from common.logs import log_aloud
from common.sections import TaskName
from common.terminal import ConsoleProgress, console

if TYPE_CHECKING:
    from client.dataset import Census
    from client.rows import Use

LOOK = 0.1
"""Seconds between two looks at a node that starts."""

app = terminal.command_line(
    "Run a hospital's node: its data stay here, and so does every decision about them.",
    linux="zamenis-hospital",
)


def main() -> None:
    """Run the command line."""
    terminal.run(app, interrupted="Interrupted.")


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="What the coordinator's `admit` printed.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for this node.")],
) -> None:
    """Make this hospital's keys, check the coordinator's, and enrol."""
    joined = enrol(token, folder)
    console.print(
        f"[green]✓[/] {joined.settings.site} has joined {joined.settings.federation}.", highlight=False
    )
    terminal.plain(f"  Its keys, policy.toml and logs are in {folder}. Next: cd {folder}; then")
    terminal.plain("  zamenis-hospital register FOLDER --label NAME")
    terminal.plain("  zamenis-hospital start")
    terminal.plain("  zamenis-hospital confirm     once every hospital has joined; at the telephone")


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM files, or table.csv and schema.toml.")],
    label: Annotated[str, typer.Option(help="Column with the label, or with the masks' paths.")],
    task: Annotated[TaskName, typer.Option(help="What is to be predicted from it.")] = "classification",
    classes: Annotated[
        str,
        typer.Option(
            help="Its values in order, with commas; default: as before, or all found. Multi-label: columns."
        ),
    ] = "",
    labels: Annotated[Path | None, typer.Option(help="The labels' CSV; default FOLDER/labels.csv.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Where this node keeps its cache and secret of FOLDER; default: its own folder."),
    ] = None,
    adaptation_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the patients to learn from; default: 0.5, or as it was registered."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Image size in pixels to prepare.")] = 64,
    directory: Directory = HERE,
) -> None:
    """Check a folder of data and let the node use it; quarantine.csv tells what is wrong with which file."""
    from client.preflight import quarantine_of
    from client.registration import register as take

    home = Home.load(directory)
    with ConsoleProgress() as progress:
        done = take(
            home,
            folder,
            label=label,
            kind=task,
            classes=terminal.listed(classes),
            labels=labels,
            state=state,
            share=adaptation_share,
            image_size=image_size,
            progress=progress.counter("Reading files"),
        )
    census = done.census
    counts = _counts(census)
    console.print("[green]✓[/]", end=" ")
    terminal.plain(f"{census.accepted} cases of {census.patients} patients{counts and ': ' + counts}.")
    for kept_out in _kept_out(done.use):
        console.print(f"  {kept_out}.", highlight=False)
    for warning in census.warnings:
        terminal.plain(f"  Note: {warning}.")
    if census.refused:
        refused = ", ".join(f"{count} {reason}" for reason, count in census.refused.items())
        terminal.plain(f"  Left out: {refused}.")
        terminal.plain(f"  {quarantine_of(Path(done.registered.state))} tells each remedy.")


def _counts(census: Census) -> str:
    """Return how many cases are of each class, or have each finding; nothing where labels are neither."""
    return ", ".join(f"{name} {count}" for name, count in census.per_class.items())


def _kept_out(use: Use) -> list[str]:
    """Return who of a label's patients is not used, in words."""
    told = []
    if use.waiting:
        told.append(
            f"{use.waiting} patients wait: they are used once they are as many as min-patients asks for"
        )
    if use.silent:
        told.append(
            f"{use.silent} patients stay unused: somebody or something of their group changed or is gone"
        )
    return told


@app.command()
def data(directory: Directory = HERE) -> None:
    """List what is registered, in counts as its registration found them; nothing here identifies anyone."""
    from client.dataset import named_of
    from client.registration import census_of, gone

    home = Home.load(directory)
    if not home.settings.data:
        console.print("Nothing is registered; zamenis-hospital register FOLDER --label NAME.")
        return
    rows, below, record = [], [], home.book.load()
    for entry in home.settings.data:
        census, task = census_of(entry), named_of(entry.task)
        use = record.uses.get(task)
        counts = (census.accepted, census.patients, sum(census.refused.values())) if census else ("", "", "")
        cells = (
            entry.label,
            *counts,
            record.patients(task) if use and census else "register again",
            use.waiting if use else "",
            use.silent if use else "",
        )
        rows.append([*map(str, cells)])
        told = (census and _counts(census)) or entry.kind
        below.append([*terminal.broken(told, terminal.COLUMNS - len(terminal.INDENT)), entry.folder])
    terminal.table(("label", "cases", "patients", "left out", "used", "waiting", "silent"), rows, below)
    terminal.plain("Counts are as registered; used, waiting and silent: of all folders of a label.")
    if away := gone(home.settings.data):
        terminal.plain("Not there, so that messages about their labels are refused:")
        for folder in away:
            terminal.plain(terminal.INDENT + folder)
        terminal.plain("Mount them again, or zamenis-hospital forget FOLDER.")


@app.command()
def forget(
    folder: Annotated[Path, typer.Argument(help="A registered folder.")], directory: Directory = HERE
) -> None:
    """Let the node use a folder no more."""
    from client.registration import forget as take_out

    troubles = take_out(Home.load(directory), folder)
    console.print(f"[green]✓[/] {folder} is not used any more.", highlight=False)
    for trouble in troubles:
        console.print(f"  Note: {trouble}", highlight=False)


@app.command()
def start(
    directory: Directory = HERE,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal.")] = False,
    systemd: Annotated[bool, typer.Option(help="Print a systemd unit instead.")] = False,
    as_root: Annotated[
        bool,
        typer.Option("--as-root", help="Run as root all the same, as in a container that has nobody else."),
    ] = False,
) -> None:
    """Start the node; it opens connections to the coordinator and accepts none."""
    home = Home.load(directory)
    policy_of(home.policy)  # without one the node would end at once, and only its log would say why
    if not as_root:
        _refuse_root(home, owner=systemd)
    argv = [service.own_command("zamenis-hospital"), "start", "--foreground", "--dir", str(home.directory)]
    argv += ["--as-root"] * as_root
    if systemd:
        title, states = (
            f"Zamenis node of {home.settings.site}",
            [Path(one.state) for one in home.settings.data],
        )
        sys.stdout.write(service.systemd_unit(title, argv, home.directory, also=states))
    elif foreground:
        _serve(home)
    else:
        home.peers()  # tells of a damaged file before anything runs
        _start(home, argv)
        unknown = _unknown(home)
        console.print("  zamenis-hospital status tells how it is; its log is logs/node.log.", highlight=False)
        if not home.settings.data:
            terminal.plain("  Nothing is registered yet: zamenis-hospital register FOLDER --label NAME")
        if unknown:
            terminal.plain(f"  Not confirmed yet: {', '.join(unknown)}. zamenis-hospital confirm")


@app.command()
def stop(directory: Directory = HERE) -> None:
    """Stop the node; what it computes now is dropped."""
    home = Home.load(directory)
    stopped = service.stop(folder=home.directory, name=SERVICE, patience=20.0)
    console.print(
        f"[green]✓[/] {home.settings.site} has stopped."
        if stopped
        else f"{home.settings.site} was not running."
    )


for command in (status, roster, confirm, vouch):
    app.command()(command)


@app.command()
def allow(
    yes: Annotated[bool, typer.Option("--yes", help="Allow without asking.")] = False,
    directory: Directory = HERE,
) -> None:
    """Give your word for sums over nearly the hospitals of earlier sums, once told what that means."""
    from client.allow import allow as give_word
    from client.allow import explain, waiting

    home = Home.load(directory)
    waits = waiting(home)
    if not waits:
        console.print("Nothing waits for a word.")
    for one in waits:
        for line in (line for paragraph in explain(one) for line in wrapped(paragraph)):
            terminal.plain(line)
        if yes or typer.confirm("Allow it?"):
            give_word(home, one)
            console.print("[green]✓[/] Allowed; the coordinator can resume its run.")


@app.command()
def pause(directory: Directory = HERE) -> None:
    """Take no part until `unpause`; what is being computed is finished and sent."""
    Home.load(directory).pause()
    console.print("[green]✓[/] Paused.")


@app.command()
def unpause(directory: Directory = HERE) -> None:
    """Take part again."""
    Home.load(directory).unpause()
    console.print("[green]✓[/] Takes part again.")


@app.command()
def rejoin(directory: Directory = HERE) -> None:
    """Give up open sums and make new keys for them: after a snapshot of this machine was brought back."""
    from client.node import vault_of

    count = vault_of(Home.load(directory)).rejoin()
    console.print(f"[green]✓[/] {count} unfinished meta-trainings go on with new keys.", highlight=False)


def _start(home: Home, argv: list[str], patience: float = 30.0) -> None:
    """Start the node and say how it is: connected, or running and not connected yet, and why."""
    from client.node import CONNECTED, STARTING, state_of, status_file

    if not service.status(folder=home.directory, name=SERVICE):
        status_file(home).unlink(missing_ok=True)  # what an earlier node said of itself
    pid = service.start(argv, folder=home.directory, name=SERVICE)
    deadline = time.monotonic() + patience
    while (told := state_of(home)).state == STARTING and time.monotonic() < deadline:
        if not service.status(folder=home.directory, name=SERVICE):
            raise ServiceError(f"the node ended as it started; {home.logs / 'node.log'} says why.")
        time.sleep(LOOK)
    if told.state == CONNECTED:
        console.print(f"[green]✓[/] {home.settings.site} is connected (process {pid}).", highlight=False)
        return
    because = f": {told.why}" if told.why else "."
    terminal.plain(f"{home.settings.site} runs (process {pid}) and is not connected: {told.state}{because}")


def _unknown(home: Home) -> list[str]:
    """Return whom this hospital has yet to confirm: as the coordinator answers, else as it last did."""
    try:
        peers = ask(home)
    except EnrolmentError:
        peers = home.peers()
    return not_known(home.roster(peers).peers)


def _refuse_root(home: Home, *, owner: bool) -> None:
    """Raise ServiceError where the node would be root's: by this process, or by its folder's `owner`."""
    if (home.directory.stat().st_uid if owner else os.geteuid()) == 0:
        raise ServiceError(
            "a node is not run as root: whatever breaks into it would have this whole machine. Give its "
            "folder to a user who can read the data (chown -R), and start it as that user; in a container "
            "that has nobody but root, start --as-root."
        )


def _serve(home: Home) -> None:
    """Run the node in this process until a signal ends it."""
    from client.node import Node

    log_aloud("%(asctime)s %(levelname)s %(message)s")
    with service.hold(folder=home.directory, name=SERVICE):
        node = Node(home)

        def end(number: int, frame: FrameType | None) -> None:
            node.stopping.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        node.run()
