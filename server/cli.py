"""`zamenis-coordinator`: founding a federation, admitting hospitals, and meta-training with them."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from common import service, terminal
from common.errors import ConfigError, LinkError, ServiceError
from common.identity import in_two_lines
from common.logs import log_aloud
from common.terminal import ConsoleProgress, console
from server.entry import Status
from server.federation import Federation
from server.federation import found as found_federation
from server.roster import Roster

SERVICE = "superlink"
HERE = Path()
DAY = 24 * 3600
UNITS = {"m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
Directory = Annotated[
    Path, typer.Option("--dir", "-C", help="The federation's folder; default: where you are.")
]

app = terminal.command_line(
    "Coordinate a federation of hospitals: admit them, meta-train with them, publish.",
    linux="zamenis-coordinator",
)


def main() -> None:
    """Run the command line."""
    terminal.run(
        app, interrupted="Interrupted. What is finished is kept; zamenis-coordinator resume goes on with it."
    )


@app.command()
def found(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the federation.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    host: Annotated[str, typer.Option(help="Name or address by which hospitals reach this machine.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port that must be reachable.")] = 8443,
    approval: Annotated[bool, typer.Option(help="Ask for `accept` after each hospital's token.")] = False,
) -> None:
    """Make a federation: its authority, certificate, secrets and roster."""
    federation = found_federation(folder, name=name, host=host, port=port, approval=approval)
    console.print(f"[green]✓[/] {federation.name} is founded in {folder}.", highlight=False)
    console.print(f"  Its certificate is for {host} and ends {federation.certificate_ends():%Y-%m-%d}.")
    terminal.plain(f"  Next: cd {folder}; then")
    terminal.plain("  zamenis-coordinator start")
    terminal.plain("  zamenis-coordinator admit HOSPITAL     once for each")


@app.command()
def renew(directory: Directory = HERE) -> None:
    """Renew the server's certificate; hospitals notice nothing. Restart the coordinator afterwards."""
    ends = Federation.load(directory).renew()
    console.print(f"[green]✓[/] The certificate now ends {ends:%Y-%m-%d}.", highlight=False)
    terminal.plain(
        "  It is shown from the next start on: zamenis-coordinator stop; zamenis-coordinator start"
    )


@app.command()
def admit(
    hospital: Annotated[str, typer.Argument(help="Its name in the federation.")],
    expires: Annotated[str, typer.Option(help="How long the token is good, e.g. 12h or 7d.")] = "7d",
    directory: Directory = HERE,
) -> None:
    """Print a one-time token for a hospital; hand it over in a way you trust."""
    federation = Federation.load(directory)
    now = time.time()
    ends = int(now) + _seconds(expires)
    secret = Roster(federation.roster).admit(hospital, expires_at=ends, now=now)
    terminal.errors.print(
        f"A token for {hospital}, good once and until {datetime.fromtimestamp(ends):%Y-%m-%d %H:%M}. There:\n"
        f"  zamenis-hospital join TOKEN DIR",
        highlight=False,
    )
    sys.stdout.write(federation.invitation(hospital, secret, ends).encode() + "\n")


@app.command()
def revoke(
    hospital: Annotated[str, typer.Argument(help="Its name in the federation.")], directory: Directory = HERE
) -> None:
    """Take a hospital out: its token or its keys open nothing any more."""
    from server.control import Control

    federation = Federation.load(directory)
    entry = Roster(federation.roster).revoke(hospital, now=time.time())
    if entry.node_id:
        try:
            Control(federation).unregister(entry.node_id)
        except LinkError:
            terminal.plain("  The service is not running; it refuses the hospital from its next start on.")
    console.print(f"[green]✓[/] {hospital} is revoked.", highlight=False)


@app.command()
def accept(
    hospital: Annotated[str, typer.Argument(help="A hospital that has used its token.")],
    directory: Directory = HERE,
) -> None:
    """Let a hospital in that has used its token, where the federation asks for approval."""
    from server.control import Control

    federation = Federation.load(directory)
    roster = Roster(federation.roster)
    roster.accept(hospital, now=time.time())
    roster.register(hospital, Control(federation).register)
    console.print(f"[green]✓[/] {hospital} is accepted.", highlight=False)


@app.command()
def reject(
    hospital: Annotated[str, typer.Argument(help="A hospital that has used its token.")],
    directory: Directory = HERE,
) -> None:
    """Turn away a hospital that has used its token."""
    Roster(Federation.load(directory).roster).reject(hospital, now=time.time())
    console.print(f"[green]✓[/] {hospital} is rejected.", highlight=False)


@app.command()
def roster(directory: Directory = HERE) -> None:
    """List the hospitals: status, last seen, and the fingerprint to compare by telephone."""
    federation = Federation.load(directory)
    entries = Roster(federation.roster).entries()
    seen = _last_seen(federation)
    rows = [
        (
            entry.hospital,
            str(entry.status),
            "?" if seen is None else seen.get(entry.node_id, "-"),
            in_two_lines(entry.fingerprint) or "-",
        )
        for entry in entries
    ]
    terminal.table(("hospital", "status", "last seen", "fingerprint"), rows)


@app.command()
def start(
    directory: Directory = HERE,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal.")] = False,
    systemd: Annotated[bool, typer.Option(help="Print a systemd unit instead.")] = False,
) -> None:
    """Start the coordinator's service: Flower's SuperLink and the enrolment of hospitals, on one port."""
    federation = Federation.load(directory)
    argv = [
        service.own_command("zamenis-coordinator"),
        "start",
        "--foreground",
        "--dir",
        str(federation.directory),
    ]
    if systemd:
        sys.stdout.write(
            service.systemd_unit(f"Zamenis coordinator {federation.name}", argv, federation.directory)
        )
    elif foreground:
        _serve(federation)
    else:
        pid = service.start(argv, folder=federation.directory, name=SERVICE)
        _wait_until_ready(federation)
        console.print(
            f"[green]✓[/] {federation.name} answers at {federation.host}:{federation.port} (process {pid}).",
            highlight=False,
        )


@app.command()
def stop(directory: Directory = HERE) -> None:
    """Stop the service; hospitals wait for it, and a run waits or can be resumed."""
    federation = Federation.load(directory)
    stopped = service.stop(folder=federation.directory, name=SERVICE, patience=20.0)
    console.print(f"[green]✓[/] {federation.name} has stopped." if stopped else "It was not running.")


@app.command()
def status(directory: Directory = HERE) -> None:
    """Tell how the service, the hospitals and the run are that goes on, or the last one."""
    from server import overview
    from server.runs import all_runs, enrolled

    federation = Federation.load(directory)
    running = service.status(folder=federation.directory, name=SERVICE)
    here, about = enrolled(federation), Roster(federation.roster).about()
    terminal.facts(
        {
            "federation": f"{federation.name} at {federation.host}:{federation.port}",
            "version": version("zamenis"),
            "service": "running" if running else "not running; zamenis-coordinator start",
            "certificate": f"ends {federation.certificate_ends():%Y-%m-%d}",
            "to accept": ", ".join(_having(federation, Status.PENDING)),
        }
    )
    known = all_runs(federation)
    for one in [one for one in known if one.running] or known[-1:]:
        terminal.facts(overview.of_run(one, here))
    if here:
        terminal.plain("")
        rows = overview.of_hospitals(here, _by_name(federation), about)
        terminal.table(("hospital", "seen", "version", "has yet to confirm"), rows)
    else:
        invited = ", ".join(_having(federation, Status.INVITED))
        waits = f"; invited: {invited}" if invited else "; zamenis-coordinator admit HOSPITAL"
        terminal.plain(f"No hospital is enrolled{waits}")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file, the same as for zamenis-simulate.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.rounds=50."),
    ] = None,
    hospitals: Annotated[
        str, typer.Option(metavar="A,B,...", help="Ask these alone; default: all that are enrolled.")
    ] = "",
    wait: Annotated[
        float, typer.Option(min=0, max=DAY, metavar="SECONDS", help="Wait so long for who is not connected.")
    ] = 0.0,
    directory: Directory = HERE,
) -> None:
    """Meta-train with the hospitals that are connected, and report."""
    from common import config as configuration
    from server.runs import new_run, wait_for

    federation = Federation.load(directory)
    loaded, chosen = configuration.load(config, set_ or []), terminal.listed(hospitals)
    wait_for(federation, chosen, wait, terminal.plain)  # nothing is begun while the service is down
    begun = new_run(federation, loaded, chosen)
    _carry_out(federation, begun.name)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name; `runs` lists them.")],
    directory: Directory = HERE,
) -> None:
    """Go on with a run from its last checkpoint."""
    _carry_out(Federation.load(directory), name)


@app.command()
def runs(directory: Directory = HERE) -> None:
    """List the runs."""
    from server.runs import all_runs

    rows = []
    for one in all_runs(Federation.load(directory)):
        try:
            config, hospitals = one.config, ", ".join(one.hospitals)
        except ConfigError:
            rows.append((one.name, "damaged", "", "", ""))
            continue
        named = ", ".join(config.experiment.algorithms)
        rows.append((one.name, str(one.end.state), str(config.training.rounds), named, hospitals))
    if rows:
        terminal.table(("run", "state", "rounds", "algorithms", "hospitals"), rows)
    else:
        terminal.plain("No run has been begun; zamenis-coordinator run CONFIG")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name.")], directory: Directory = HERE
) -> None:
    """Show what a finished run found; of another, how it is, why, and what to do."""
    from server.runs import find_run

    one = find_run(Federation.load(directory), name)
    if one.finished:
        _tell(one.results, one.folder)
    else:
        terminal.plain(one.unfinished())


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name.")],
    file: Annotated[Path, typer.Argument(help="Where phi goes, e.g. phi.safetensors.")],
    directory: Directory = HERE,
) -> None:
    """Copy a finished run's phi, with its configuration in the file, for hospitals to adapt."""
    from common.files import atomic
    from server.runs import find_run

    one = find_run(Federation.load(directory), name)
    _ = one.results
    with atomic(file) as temporary:
        shutil.copyfile(one.folder / "phi.safetensors", temporary)
    console.print(f"[green]✓[/] {file}", highlight=False)


ONLINE = "connected"


def _by_name(federation: Federation) -> dict[str, str] | None:
    """Return when each enrolled hospital was last seen, by name; None while the service does not answer."""
    seen = _last_seen(federation)
    if seen is None:
        return None
    entries = Roster(federation.roster).entries()
    return {entry.hospital: seen[entry.node_id] for entry in entries if entry.node_id in seen}


def _having(federation: Federation, status: Status) -> list[str]:
    return [one.hospital for one in Roster(federation.roster).entries() if one.status is status]


def _last_seen(federation: Federation) -> dict[int, str] | None:
    """Return when each node was last seen; None while the service, which alone knows, does not answer."""
    from server.control import Control

    try:
        nodes = Control(federation).nodes()
    except LinkError:
        return None
    told = {}
    for node in nodes:
        if node.status == "online":
            told[node.node_id] = ONLINE
        elif node.online_until:
            then = datetime.fromtimestamp(node.online_until, UTC)
            told[node.node_id] = f"{then.astimezone():%Y-%m-%d %H:%M}"
    return told


def _carry_out(federation: Federation, name: str) -> None:
    from server.runs import PROCESS, carry_out, find_run

    one = find_run(federation, name)
    command = shlex.join(["zamenis-coordinator", *sys.argv[1:]])
    with service.hold(folder=one.folder, name=PROCESS), ConsoleProgress() as progress:
        console.print(f"Run {one.name}", highlight=False)
        found = carry_out(federation, one, progress, progress.note, command=command)
    _tell(found, one.folder)


def _tell(results: Mapping[str, Any], folder: Path) -> None:
    from server.report.console import tell

    tell(console, results, folder)


def _serve(federation: Federation) -> None:
    from server.gateway import serve

    log_aloud("%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with service.hold(folder=federation.directory, name=SERVICE):
        serve(federation)


def _wait_until_ready(federation: Federation, patience: float = service.STARTING) -> None:
    """Wait until the service answers. ServiceError where it ends, or does not answer in time."""
    from server.control import Control

    control, log = Control(federation), federation.logs / f"{SERVICE}.log"
    deadline = time.monotonic() + patience
    while True:
        try:
            control.nodes()
        except LinkError:
            running = service.status(folder=federation.directory, name=SERVICE)
            if not running:
                raise ServiceError(f"the service ended as it started; {log} says why.") from None
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"the service runs as process {running} and does not answer after {patience:.0f} seconds;"
                    f" {log} may say why. zamenis-coordinator stop ends it."
                ) from None
            time.sleep(0.1)
        else:
            return


def _seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d+)([mhdw])", duration, re.ASCII)
    if not found or not int(found[1]):
        raise ConfigError(f"--expires {duration}: must read like 30m, 12h, 7d or 2w.")
    return int(found[1]) * UNITS[found[2]]
