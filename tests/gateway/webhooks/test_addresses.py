"""A webhook goes to public addresses, and to others only where they are allowed as such."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from tunery.gateway.webhooks.addresses import resolve
from tunery.registry.errors import InvalidInput, Unavailable
from tunery.registry.network.addresses import is_permitted


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_permitted(ipaddress.ip_address(address), [])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "2001:0:a9fe:a9fe::1", "::a9fe:a9fe",
    ],
)  # fmt: skip
def test_addresses_that_must_be_allowed_explicitly(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert not is_permitted(parsed, [])
    assert not is_permitted(parsed, [ipaddress.ip_network("198.51.100.0/24")])
    plain = getattr(parsed, "ipv4_mapped", None) or parsed
    assert is_permitted(parsed, [ipaddress.ip_network(plain)])


async def test_the_first_permitted_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "10.0.0.1", "8.8.4.4", "8.8.8.8")
    assert str(await resolve("hooks.example", 443, permitted=[])) == "8.8.4.4"
    inside = ipaddress.ip_network("10.0.0.0/8")
    assert str(await resolve("hooks.example", 443, permitted=[inside])) == "10.0.0.1"


async def test_a_name_without_a_permitted_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "10.0.0.1", "fe80::1%eth0")
    with pytest.raises(InvalidInput, match=r"hooks.example resolves to 10.0.0.1, fe80::1, which is not public"):
        await resolve("hooks.example", 443, permitted=[])


async def test_a_name_that_is_not_known_may_be_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Unavailable, match=r"hooks.example cannot be resolved"):
        await resolve("hooks.example", 443, permitted=[])


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to these."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
