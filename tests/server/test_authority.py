"""The federation's certificates satisfy strict verifiers, and nobody else's do."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import ConfigError
from server.authority import CA_LIFE, SERVER_LIFE, Credentials, certify, expiry, new_authority, new_server
from tests.enrolling import coordinator, listening

NOW = datetime.now(UTC)


def handshake(server: Credentials, ca: x509.Certificate, name: str, folder: Path) -> None:
    """Run a TLS handshake in memory, the client trusting `ca` under strict flags and expecting `name`."""
    (folder / "server.pem").write_bytes(server.certificate_pem)
    (folder / "server.key").write_bytes(server.key_pem)
    there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    there.load_cert_chain(folder / "server.pem", folder / "server.key")
    here = ssl.create_default_context(cadata=ca.public_bytes(Encoding.DER))
    here.verify_flags |= ssl.VERIFY_X509_STRICT
    one, other = socket.socketpair()
    with one, other:

        def serve() -> None:
            with there.wrap_socket(other, server_side=True, do_handshake_on_connect=False) as line:
                try:
                    line.do_handshake()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            here.wrap_socket(one, server_hostname=name).close()
        finally:
            one.close()
            thread.join()


@pytest.mark.parametrize("host", ["meta.example.org", "192.0.2.7", "2001:db8::7", "localhost"])
def test_strict_verifiers_are_satisfied(host: str, tmp_path: Path) -> None:
    """The host and this machine's own names verify; another name does not."""
    authority = new_authority("demo", NOW)
    server = new_server(authority, host, NOW)
    for name in (host, "localhost", "127.0.0.1", "::1"):
        handshake(server, authority.certificate, name, tmp_path)
    for name in ("other.example.org", "192.0.2.8"):
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            handshake(server, authority.certificate, name, tmp_path)
        assert caught.value.verify_code in (62, 64)


def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    """Even one of the same name."""
    server = new_server(new_authority("demo", NOW), "localhost", NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, new_authority("demo", NOW).certificate, "localhost", tmp_path)


def test_a_server_is_no_authority(tmp_path: Path) -> None:
    """A certificate that the server's key signs is worth nothing."""
    authority = new_authority("demo", NOW)
    server = new_server(authority, "localhost", NOW)
    forged = new_server(server, "localhost", NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(forged, authority.certificate, "localhost", tmp_path)


def test_lives() -> None:
    """Ten years for the CA, one for the server, never longer than the CA's; none after it."""
    authority = new_authority("demo", NOW)
    whole = NOW.replace(microsecond=0)
    assert expiry(authority.certificate_pem) == whole + CA_LIFE
    public = authority.key.public_key()
    assert certify(authority, public, "localhost", NOW).not_valid_after_utc == whole + SERVER_LIFE
    late = NOW + CA_LIFE - timedelta(days=9)
    assert certify(authority, public, "localhost", late).not_valid_after_utc == whole + CA_LIFE
    with pytest.raises(ConfigError, match="CA expired"):
        certify(authority, public, "localhost", NOW + CA_LIFE)


def test_credentials_belong_together() -> None:
    """Another key, or no key, is told; a key is in no repr."""
    one, other = new_authority("demo", NOW), new_authority("demo", NOW)
    assert Credentials.load(one.certificate_pem, one.key_pem).certificate == one.certificate
    with pytest.raises(ConfigError, match="not for this key"):
        Credentials.load(one.certificate_pem, other.key_pem)
    with pytest.raises(ConfigError, match="damaged"):
        Credentials.load(one.certificate_pem, b"")
    assert "key" not in repr(one)


def test_a_renewed_certificate_needs_no_news_for_hospitals(tmp_path: Path) -> None:
    """httpx, trusting the same ca.pem, talks to the server before and after; the expiry moves."""
    there = coordinator(tmp_path / "demo")
    federation = there.federation
    trusted = ssl.create_default_context(cafile=federation.ca)
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    ca, first = federation.ca.read_bytes(), federation.certificate.read_bytes()
    later = NOW + timedelta(hours=1)

    def talk() -> int:
        with (
            listening(there.enrolment(), federation.certificate, federation.key) as server,
            httpx.Client(verify=trusted) as client,
        ):
            return client.get(f"https://127.0.0.1:{server.server_port}/v1/zamenis/federation").status_code

    assert talk() == httpx.codes.OK
    assert federation.renew(later) == later.replace(microsecond=0) + SERVER_LIFE
    assert federation.certificate_ends() == later.replace(microsecond=0) + SERVER_LIFE
    assert federation.ca.read_bytes() == ca
    assert federation.certificate.read_bytes() != first
    assert talk() == httpx.codes.OK
