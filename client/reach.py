"""Which files a worker may touch: code, its hospital's data and policy, its own state and log.

Landlock's rules hold for a file or folder itself, not for its name: where one was replaced, say by an editor,
a new worker takes over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.home import Home
from client.site import Node, NodeConfig
from common.errors import ConfigError
from common.files import PRIVATE

SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys")
SETTINGS = ("ld.so.cache", "localtime", "passwd", "nsswitch.conf", "ssl/openssl.cnf", "mime.types")
"""Files of /etc that libraries read."""


@dataclass(frozen=True)
class Reach:
    """Files and folders, each with all that lies in it."""

    data: tuple[Path, ...]
    """Read: the hospital's folders, its labels, its policy."""
    own: tuple[Path, ...]
    """Read and written: state folders and the worker's log."""
    hidden: Path
    """The node's own folder: nothing of it is read, whatever else lies around it, but what is named above."""

    def identity(self) -> tuple[tuple[int, int], ...]:
        """Return what tells the same files from others that have taken their names."""
        return tuple(_identity(path) for path in (*self.data, *self.own))

    def readable(self) -> list[Path]:
        """Return everything to read: the data, linked files in their folders, code and libraries."""
        links = (link for path in self.data for link in self._links(path))
        return [part for path in (*self.data, *links, *_code()) for part in _around(path, self.hidden)]

    def _links(self, folder: Path) -> Iterator[Path]:
        """Yield where a folder's linked files lead, but for those that a worker may have linked itself."""
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if Path(parent, name) not in (*self.own, self.hidden)]
            links = (Path(parent, name) for name in names if os.path.islink(os.path.join(parent, name)))
            yield from (link.resolve() for link in links)

    def writable(self) -> list[Path]:
        """Return everything to write, made where it does not exist yet."""
        *states, log = self.own
        with suppress(OSError):  # of a folder that is gone; the worker refuses in its own words
            for state in states:
                state.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.touch(PRIVATE)
        return list(self.own)


def reach_of(home: Home, config: NodeConfig, log: Path) -> Reach:
    """Return what the worker of a hospital's node may touch.

    ConfigError: a state folder has the node's own secrets in it.
    """
    node = Node.of(config)
    states = [state or folder / ".zamenis" for folder, state in zip(node.folders, node.states, strict=True)]
    for state in states:
        if home.state.is_relative_to(state.resolve()):
            raise ConfigError(
                f"{state}: holds this node's own secrets as well; register its folder with another --state."
            )
    labels = [sheet for sheet in node.labels if sheet]
    data = (home.policy, *(path.resolve() for path in (*node.folders, *labels)))
    own = (*states, home.book.path.parent)
    return Reach(data, (*(state.resolve() for state in own), log), home.directory)


def _code() -> list[Path]:
    """Return what every process reads: the system's libraries, Python's, and ours."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    own = (sys.prefix, sys.base_prefix, *libraries, *sys.path)
    settings = (Path("/etc") / name for name in SETTINGS)
    return [*map(Path, SYSTEM), *settings, *(Path(one).resolve() for one in own if one)]


def _around(path: Path, hidden: Path) -> Iterator[Path]:
    """Yield `path`, or all that lies in it but for `hidden`."""
    if path == hidden:
        return
    if hidden.is_relative_to(path):
        for below in _listed(path):
            yield from _around(below, hidden)
    else:
        yield path


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
