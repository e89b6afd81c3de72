"""A federation's folder is founded whole or not at all, and only its owner reads its secrets."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from common.errors import ConfigError
from server.federation import Federation, found


def test_a_federation_is_founded(tmp_path: Path) -> None:
    """What was founded loads equal; 32 random bytes each, and every secret for its owner alone."""
    federation = found(tmp_path / "below" / "demo", "demo", "Meta.Example.org", 8443, approval=True)
    assert Federation.load(tmp_path / "below" / "demo") == federation
    assert (federation.name, federation.host, federation.port) == ("demo", "meta.example.org", 8443)
    assert federation.approval
    private = [federation.key, federation.ca_key, federation.control_secret, federation.superexec_secret]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert stat.S_IMODE(federation.directory.stat().st_mode) == 0o700
    secrets = {federation.control_secret.read_bytes(), federation.superexec_secret.read_bytes()}
    assert [len(secret) for secret in secrets] == [32, 32]
    assert sorted(path.name for path in federation.directory.parent.iterdir()) == ["demo"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    """A federation, or anything else; and nothing in it changes. An empty folder will do."""
    (tmp_path / "demo").mkdir()
    before = found(tmp_path / "demo", "demo", "localhost", 1).ca.read_bytes()
    with pytest.raises(ConfigError, match="holds a federation already"):
        found(tmp_path / "demo", "demo", "localhost", 1)
    assert (tmp_path / "demo" / "ca.pem").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    (tmp_path / "file").touch()
    for name in ("other", "file"):
        with pytest.raises(ConfigError, match="not empty"):
            found(tmp_path / name, "demo", "localhost", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "file", "other"]


@pytest.mark.parametrize(
    ("name", "host", "port", "words"),
    [
        ("de mo", "localhost", 1, r"federation: name must be letters, digits and hyphens.*de mo"),
        ("demo", "https://x", 1, r"federation: host must be a DNS name.*https://x"),
        ("demo", "localhost", 0, r"federation: port must be greater than or equal to 1.*0"),
        ("demo", "localhost", 65536, r"federation: port must be less than or equal to 65535"),
    ],
)
def test_what_cannot_be_is_named(name: str, host: str, port: int, words: str, tmp_path: Path) -> None:
    """Which field, which rule; and no folder is left."""
    with pytest.raises(ConfigError, match=words):
        found(tmp_path / "demo", name, host, port)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """No federation at all, or a lost file."""
    with pytest.raises(ConfigError, match="holds no federation"):
        Federation.load(tmp_path)
    federation = found(tmp_path / "demo", "demo", "localhost", 1)
    federation.ca_key.unlink()
    with pytest.raises(ConfigError, match=r"ca\.key: is missing"):
        Federation.load(tmp_path / "demo")
    (tmp_path / "demo" / "federation.toml").write_text('name = "demo"\nhost = "localhost"\nprot = 3\n')
    with pytest.raises(ConfigError, match=r"federation\.toml: prot is not a known key; did you mean port"):
        Federation.load(tmp_path / "demo")


def test_a_folder_may_move(tmp_path: Path) -> None:
    """Nothing in it knows where it lies."""
    found(tmp_path / "demo", "demo", "localhost", 1)
    (tmp_path / "demo").rename(tmp_path / "moved")
    assert Federation.load(tmp_path / "moved").renew()
