"""A hospital node's folder: written whole, read back equal, its keys its owner's alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from client.home import Home, Keys, NodeSettings, Registered
from common.errors import ConfigError
from common.identity import fingerprint
from common.secagg.identity import Peer
from common.settings import validate

SETTINGS = NodeSettings(
    site="st-anna", federation="demo", host="meta.example.org", port=8443, node_id=2**64 - 1
)
XRAY = Registered(folder="/data/x", state="/data/s", label="finding", classes=("a", "b"))


def make(folder: Path) -> Home:
    """Make a node's folder with new keys."""
    peers = {"other": b"k" * 32}
    return Home.make(folder, SETTINGS, Keys.make(), ca=b"certificate", peers=peers, policy="# all\n")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a new node's folder."""
    return make(tmp_path / "node")


def test_a_home_is_kept(home: Home) -> None:
    """Settings, certificate, keys and peers come back; private keys are 0600, the folder 0700."""
    assert Home.load(home.directory) == home
    assert home.settings == SETTINGS
    assert home.origin == "https://meta.example.org:8443"
    assert home.ca.read_bytes() == b"certificate"
    assert home.policy.read_text() == "# all\n"
    assert home.peers().pinned == {"other": Peer(b"k" * 32)}
    own = home.keys().identity.public_key().public_bytes_raw()
    assert home.fingerprint == fingerprint(own)
    assert home.logs.is_dir()
    assert home.state.is_dir()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in home.keys_folder.iterdir()]
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700


def test_keys_come_back_and_are_shown_nowhere(home: Home) -> None:
    """Loaded twice they are the same; a repr says nothing of them."""
    first, again = home.keys(), home.keys()
    assert first.node.public_key() == again.node.public_key()
    assert first.identity.public_key() == again.identity.public_key()
    assert repr(first) == "Keys()"


def test_settings_change(home: Home) -> None:
    """Registered data and hours are written and read back."""
    other = SETTINGS.model_copy(update={"data": (XRAY,), "hours": "18:00-06:00", "threads": 3})
    assert home.with_settings(other).settings == other
    assert Home.load(home.directory).settings == other


def test_pausing(home: Home) -> None:
    """A flag on disk, which outlives the process; twice is no harm."""
    assert not home.paused
    for _ in range(2):
        home.pause()
        assert Home.load(home.directory).paused
    for _ in range(2):
        home.unpause()
        assert not home.paused


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hours": "18-6"}, "hours"),
        ({"hours": "18:00-24:00"}, "hours"),
        ({"hours": "18:00-06:00\n"}, "hours"),
        ({"device": "gpu"}, "device"),
        ({"site": "St Anna"}, "site must be letters"),
        ({"node-id": 0}, "node-id"),
        ({"node-id": 2**64}, "node-id"),
        ({"data": [XRAY.model_dump()] * 2}, "registers a folder's label twice"),
        ({"treads": 2}, "did you mean threads"),
    ],
)
def test_what_cannot_be_is_named(changed: dict[str, object], words: str) -> None:
    """Which key, which rule."""
    with pytest.raises(ConfigError, match=words):
        validate(NodeSettings, SETTINGS.model_dump(by_alias=True) | changed, "node.toml")


def test_what_is_missing_or_damaged_is_named(home: Home, tmp_path: Path) -> None:
    """No node, a lost certificate, a damaged key, keys exchanged, damaged peers."""
    with pytest.raises(ConfigError, match="holds no hospital's node"):
        Home.load(tmp_path)
    home.peers_file.write_text("other = 3\n")
    with pytest.raises(ConfigError, match=r"peers\.toml: is damaged"):
        home.peers()
    node, identity = home.keys_folder / "node.key", home.keys_folder / "identity.key"
    kept = node.read_bytes()
    node.write_bytes(identity.read_bytes())
    with pytest.raises(ConfigError, match="keys of another kind"):
        home.keys()
    node.write_bytes(kept)
    identity.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"identity\.key: is missing or damaged"):
        home.keys()
    home.ca.unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem: is missing"):
        Home.load(home.directory)


def test_nothing_is_written_over(home: Home) -> None:
    """A folder that holds anything stays as it is."""
    before, key = sorted(home.directory.rglob("*")), home.keys().node.public_key()
    with pytest.raises(FileExistsError):
        make(home.directory)
    assert home.keys().node.public_key() == key
    assert sorted(home.directory.rglob("*")) == before
    assert [path.name for path in home.directory.parent.iterdir()] == ["node"]
