"""What a federation, a hospital and a coordinator's address may be called: one rule for both sides."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST = 32
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def check_name(name: str) -> str:
    """Return a federation's or hospital's `name`; ValueError states the rule where it breaks it."""
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        raise ValueError(
            f"must be letters, digits and hyphens, at most {LONGEST}, a letter or digit first and last"
        )
    return name


def check_host(host: str) -> str:
    """Return an IP address in its shortest form, or a DNS name (RFC 1123) in lower case; else ValueError."""
    try:
        address = ip_address(host)
    except ValueError:
        return _check_dns_name(host.lower())
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise ValueError("must be an address that hospitals can reach, not one that stands for many")
    return str(address)


def _check_dns_name(host: str) -> str:
    labels = host.split(".")
    if len(host) > 253 or labels[-1].isdecimal() or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("must be a DNS name such as meta.example.org or an IP address")
    return host


def origin(host: str, port: int) -> str:
    """Return the https address of a coordinator, without a path; IPv6 in brackets (RFC 3986, 3.2.2)."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


Name = Annotated[str, AfterValidator(check_name)]
Host = Annotated[str, AfterValidator(check_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
