"""`zamenis-hospital`: joining a federation, registering data, and running the node."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from client.enrol import join as enrol
from client.home import Home
from common import service, terminal
from common.errors import ConfigError
from common.identity import fingerprint
from common.terminal import ConsoleProgress, console

SERVICE = "node"
Directory = Annotated[Path, typer.Option("--dir", "-C", help="The node's folder; default: where you are.")]
HERE = Path()

app = terminal.command_line(
    "Run a hospital's node: its data stay here, and so does every decision about them."
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
    console.print(f"  Keys, policy.toml and logs are in {folder}. Next: cd {folder}", highlight=False)
    console.print("  and zamenis-hospital register FOLDER --label NAME", highlight=False)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM files, or table.csv and schema.toml.")],
    label: Annotated[str, typer.Option(help="Column with the label.")],
    classes: Annotated[str, typer.Option(help="Its values in order, with commas; default: all found.")] = "",
    labels: Annotated[Path | None, typer.Option(help="The labels' CSV; default FOLDER/labels.csv.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Where this node keeps its cache and secrets of FOLDER; default inside it."),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Image size in pixels to prepare.")] = 64,
    directory: Directory = HERE,
) -> None:
    """Check a folder of data and let the node use it; quarantine.csv tells what is wrong with which file."""
    from client.registration import register as take

    home = Home.load(directory)
    named = [name.strip() for name in classes.split(",") if name.strip()]
    with ConsoleProgress() as progress:
        done = take(
            home,
            folder,
            label=label,
            classes=named,
            labels=labels,
            state=state,
            image_size=image_size,
            progress=progress.counter("Reading files"),
        )
    census = done.census
    counts = ", ".join(f"{name} {count}" for name, count in census.per_class.items())
    console.print(
        f"[green]✓[/] {census.accepted} cases of {census.patients} patients: {counts}.", highlight=False
    )
    for warning in census.warnings:
        console.print(f"  Note: {warning}.", highlight=False)
    if census.refused:
        refused = ", ".join(f"{count} {reason}" for reason, count in census.refused.items())
        console.print(f"  Left out: {refused}.", highlight=False)
        console.print(
            f"  {Path(done.registered.state) / 'quarantine.csv'} tells each remedy.", highlight=False
        )


@app.command()
def data(directory: Directory = HERE) -> None:
    """List what is registered, in counts; nothing here identifies anyone."""
    from client.registration import census_of

    home = Home.load(directory)
    if not home.settings.data:
        console.print("Nothing is registered; zamenis-hospital register FOLDER --label NAME.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("label", "classes", "cases", "patients", "left out", "folder"):
        table.add_column(column)
    for entry in home.settings.data:
        census = census_of(entry)
        counts = ", ".join(f"{name} {count}" for name, count in census.per_class.items())
        cells = (entry.label, counts, census.accepted, census.patients, sum(census.refused.values()))
        table.add_row(*(Text(str(cell)) for cell in cells), Text(entry.folder, overflow="fold"))
    console.print(table)


@app.command()
def forget(
    folder: Annotated[Path, typer.Argument(help="A registered folder.")], directory: Directory = HERE
) -> None:
    """Let the node use a folder no more."""
    from client.registration import forget as take_out

    take_out(Home.load(directory), folder)
    console.print(f"[green]✓[/] {folder} is not used any more.", highlight=False)


@app.command()
def start(
    directory: Directory = HERE,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal.")] = False,
    systemd: Annotated[bool, typer.Option(help="Print a systemd unit instead.")] = False,
) -> None:
    """Start the node; it opens connections to the coordinator and accepts none."""
    home = Home.load(directory)
    argv = [_program(), "start", "--foreground", "--dir", str(home.directory)]
    if systemd:
        title, states = (
            f"Zamenis node of {home.settings.site}",
            [Path(one.state) for one in home.settings.data],
        )
        sys.stdout.write(service.systemd_unit(title, argv, home.directory, also=states))
    elif foreground:
        _serve(home)
    else:
        pid = service.start(argv, folder=home.directory, name=SERVICE)
        console.print(f"[green]✓[/] {home.settings.site} is running (process {pid}).", highlight=False)
        console.print("  zamenis-hospital status tells how it is; its log is logs/node.log.", highlight=False)
        if not home.settings.data:
            console.print("  Nothing is registered yet: zamenis-hospital register FOLDER --label NAME")


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


@app.command()
def status(directory: Directory = HERE) -> None:
    """Tell how the node is."""
    from client.node import state_of

    home = Home.load(directory)
    running = service.status(folder=home.directory, name=SERVICE)
    told = state_of(home) if running else "not running; zamenis-hospital start"
    lines = {
        "hospital": home.settings.site,
        "federation": f"{home.settings.federation} at {home.settings.host}:{home.settings.port}",
        "node": told,
        "fingerprint": home.fingerprint,
        "data": ", ".join(sorted({entry.label for entry in home.settings.data})) or "nothing registered",
        "hours": home.settings.hours or "any",
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        console.print(f"{name:<{width}}  {value}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def roster(directory: Directory = HERE) -> None:
    """Ask who else is in the federation, and show the digest to compare with them by telephone."""
    from client.acquaintance import ask

    home = Home.load(directory)
    peers = ask(home)
    site = home.settings.site
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("hospital", "", "fingerprint"):
        table.add_column(column)
    table.add_row(Text(site), "this one", Text(home.fingerprint, overflow="fold"))
    for name, peer in sorted(peers.pinned.items()):
        told = "confirmed" if peer.confirmed else "not confirmed"
        table.add_row(Text(name), told, Text(fingerprint(peer.public), overflow="fold"))
    console.print(table)
    digest = peers.roster(site, home.identity).digest()
    console.print(f"Digest of this roster: {digest}", highlight=False, soft_wrap=True)
    if not all(peer.confirmed for peer in peers.pinned.values()):
        console.print("Compare it with the other hospitals, not through the coordinator; then")
        console.print("zamenis-hospital confirm DIGEST", highlight=False)


@app.command()
def confirm(
    digest: Annotated[list[str], typer.Argument(help="The digest that the other hospitals read out.")],
    directory: Directory = HERE,
) -> None:
    """Confirm the other hospitals' keys: their operators see the same digest."""
    from client.acquaintance import ask

    home = Home.load(directory)
    ask(home).confirm(home.settings.site, home.identity, " ".join(digest))
    console.print("[green]✓[/] Every hospital of this roster is confirmed.")


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


def _serve(home: Home) -> None:
    """Run the node in this process until a signal ends it."""
    from client.node import Node

    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form)
    logging.getLogger("zamenis").setLevel(logging.INFO)
    with service.hold(folder=home.directory, name=SERVICE):
        node = Node(home)

        def end(number: int, frame: FrameType | None) -> None:
            node.stopping.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        node.run()


def _program() -> str:
    """Return the command itself, for a process of its own."""
    found = shutil.which("zamenis-hospital", path=str(Path(sys.executable).parent)) or sys.argv[0]
    if not Path(found).is_file():
        raise ConfigError("zamenis-hospital is not installed; pip install it, or use start --foreground.")
    return found
