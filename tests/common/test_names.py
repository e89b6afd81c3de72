"""Names and addresses: what may be one, and how it is written."""

from __future__ import annotations

import pytest

from common.names import check_host, check_name, origin


@pytest.mark.parametrize("name", ["a", "St-Anna", "0", "a" * 32, "a--b"])
def test_a_name(name: str) -> None:
    """Letters, digits and hyphens, at most 32."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a b", "a.b", "a/b", "a\n", "ä", "a" * 33, "..", "a_b", "٣"]
)
def test_no_name(name: str) -> None:
    """Nothing that means something to a shell, a path or a person in a hurry."""
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        check_name(name)


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("Meta.Example.ORG", "meta.example.org"),
        ("localhost", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:0DB8:0::7", "2001:db8::7"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
    ],
)
def test_a_host(host: str, written: str) -> None:
    """One spelling of each."""
    assert check_host(host) == written


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "a b",
            "meta.example.org.",
            "meta..org",
            "-a.org",
            "a_b.org",
            "x" * 64,
            "a\n",
            "münchen.example",
        ),
        *("999.1.1.1", "1.2.3", "224.0.0.1", "::", "fe80::1%eth0", "https://meta.example.org", "host:80"),
    ],
)
def test_no_host(host: str) -> None:
    """Neither a URL nor an address that nobody can reach."""
    with pytest.raises(ValueError, match="must be"):
        check_host(host)


def test_an_origin() -> None:
    """IPv6 stands in brackets."""
    assert origin("meta.example.org", 8443) == "https://meta.example.org:8443"
    assert origin("2001:db8::7", 1) == "https://[2001:db8::7]:1"
