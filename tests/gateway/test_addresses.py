"""Remote servers may only be where their entry allows."""

import socket
from typing import Any

import pytest
from sandgate_gateway.upstreams.addresses import PrivateAddressError, PublicResolver, check_public, is_public
from sandgate_gateway.upstreams.connection import CouldNotConnectError

from tests.gateway.running_gateway import RunningGateway, echo_over_http


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.17.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "not an address",
    ],
)
def test_addresses_for_special_purposes_are_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://example.com/mcp", "is not https"),
        ("https://127.0.0.1/mcp", "address 127.0.0.1 is not public"),
        ("https://[::1]:8443/mcp", "address ::1 is not public"),
        ("https://user:key@10.0.0.1/mcp", "address 10.0.0.1 is not public"),
    ],
)
def test_a_url_alone_can_tell_that_it_must_not_be_used(url: str, problem: str) -> None:
    with pytest.raises(CouldNotConnectError, match=problem) as caught:
        check_public(url)
    assert caught.value.final


async def test_a_name_that_leads_to_a_private_address_is_not_resolved() -> None:
    with pytest.raises(PrivateAddressError):
        await PublicResolver().resolve("localhost", 443, socket.AF_INET)


@pytest.mark.parametrize("kind", ["http", "sse"])
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://example.com/mcp?key=s3cret", "its URL is not https"),
        ("https://127.0.0.1:1/mcp", "its address 127.0.0.1 is not public"),
        ("https://localhost:1/mcp", "is not public"),
        ("https://2130706433/mcp", "not valid"),
    ],
)
def test_a_server_that_must_not_be_connected_to_has_failed_at_once(
    gateway: RunningGateway, kind: str, url: str, problem: str
) -> None:
    transport: dict[str, Any] = {"type": kind, "url": url, "headers": {"Authorization": "Bearer s3cret-s3cret"}}
    status = gateway.configure({"remote": transport})["remote"]
    assert status["state"] == "failed"
    assert problem in status["message"]
    assert "s3cret" not in str(status)


def test_an_entry_can_allow_private_addresses(gateway: RunningGateway, tmp_path: Any) -> None:
    with echo_over_http(tmp_path) as url:
        allowed = {"type": "http", "url": url, "headers": {}, "allowPrivate": True}
        assert gateway.configure({"remote": allowed})["remote"]["state"] == "ready"
        gateway.configure({})
