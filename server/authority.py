"""The federation's own certificate authority: one CA for its life, one server certificate a year.

X.509 version 3 as RFC 5280 profiles it, so that strict verifiers accept it; P-256 and SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError

CA_LIFE = timedelta(days=3652)
SERVER_LIFE = timedelta(days=365)
BACKDATED = timedelta(days=1)
"""Certificates are valid from a day ago, for clocks that are behind."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Credentials:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Credentials:
        """Return the credentials from PEM; ConfigError where they are none, or do not belong together."""
        try:
            found = cls(x509.load_pem_x509_certificate(certificate), _private_key(key))
        except (ValueError, TypeError):
            raise ConfigError("the certificate or its key is damaged. Restore both from a backup.") from None
        if found.certificate.public_key() != found.key.public_key():
            raise ConfigError("the certificate is not for this key. Restore both from one backup.")
        return found

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, which anybody may see."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, unencrypted: write it with mode 0600."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(federation: str, now: datetime) -> Credentials:
    """Return a new CA for `federation`, which signs server certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Zamenis"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority"),
        ]
    )
    public = key.public_key()
    builder = _builder(name, name, public, now, now + CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False
    )
    return Credentials(builder.sign(key, SHA256()), key)


def new_server(authority: Credentials, host: str, now: datetime) -> Credentials:
    """Return a new key with a certificate for `host` and this machine's own names."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Credentials(certify(authority, key.public_key(), host, now), key)


def certify(
    authority: Credentials, public: ec.EllipticCurvePublicKey, host: str, now: datetime
) -> x509.Certificate:
    """Return a server certificate for `public`, a year long at most and never longer than the CA's.

    Raises ConfigError where the CA itself has expired.
    """
    end = min(now + SERVER_LIFE, authority.certificate.not_valid_after_utc)
    if end <= now:
        raise ConfigError(f"the federation's CA expired on {end:%Y-%m-%d}. Found the federation anew.")
    issuer = authority.certificate.subject
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Zamenis coordinator")])
    names = dict.fromkeys((host, *LOOPBACK))
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(subject, issuer, public, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False
    )
    return builder.sign(authority.key, SHA256())


def expiry(certificate: bytes) -> datetime:
    """Return when the certificate in PEM ends."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def utc_now() -> datetime:
    """Return the time that certificates are dated from."""
    return datetime.now(UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic curve's key")
    return key
