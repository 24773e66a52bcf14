"""What of a `network` object is accepted, what it comes to for the engine, and what is refused in which words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from app.engines.interface import ALL_TRAFFIC, EgressRules
from app.errors import InvalidRequest
from app.sandboxes.network_rules import NetworkRules


def test_nothing_given_limits_nothing() -> None:
    rules = NetworkRules.parse(None)
    assert rules == NetworkRules.parse({}) == NetworkRules()
    assert rules.egress == EgressRules()
    assert rules.to_wire() == {}


def test_lists_hold_addresses_blocks_and_names() -> None:
    rules = NetworkRules.parse(
        {
            "allowOut": ["1.1.1.1", "8.8.8.8/24", "API.example.com", "*.example.org"],
            "denyOut": ["0.0.0.0/0", "::/0"],
            "dnsServers": ["9.9.9.9"],
        }
    )
    assert rules.egress == EgressRules(
        allowed=(IPv4Network("1.1.1.1/32"), IPv4Network("8.8.8.0/24")),
        allowed_hosts=("api.example.com", "*.example.org"),
        denied=(ALL_TRAFFIC,),
        name_servers=(IPv4Address("9.9.9.9"),),
    )


def test_no_internet_access_is_the_same_as_denying_all_traffic() -> None:
    assert NetworkRules.parse(None, allow_internet_access=False).egress == EgressRules(denied=(ALL_TRAFFIC,))
    limited = NetworkRules.parse({"allowOut": ["example.com"]}, allow_internet_access=False)
    assert limited.egress.allowed_hosts == ("example.com",)


def test_an_empty_list_of_name_servers_is_not_the_default_one() -> None:
    given = {"allowOut": ["example.com"], "denyOut": ["0.0.0.0/0"], "dnsServers": []}
    assert NetworkRules.parse(given).egress.name_servers == ()


def test_what_is_told_of_a_sandbox_reads_back_to_the_same_rules() -> None:
    given = {
        "allowOut": ["example.com", "1.1.1.1"],
        "denyOut": ["0.0.0.0/0"],
        "dnsServers": [],
        "allowPublicTraffic": False,
        "maskRequestHost": "${PORT}-app.example.com:${PORT}",
    }
    rules = NetworkRules.parse(given)
    assert rules.to_wire() == given
    assert NetworkRules.parse(rules.to_wire()) == rules


def test_an_update_replaces_what_leaves_the_sandbox_and_keeps_the_rest() -> None:
    rules = NetworkRules.parse(
        {"allowPublicTraffic": False, "maskRequestHost": "app.example.com", "denyOut": ["8.8.8.8"]}
    )
    assert rules.updated({"denyOut": ["9.9.9.9"]}).to_wire() == {
        "denyOut": ["9.9.9.9"],
        "allowPublicTraffic": False,
        "maskRequestHost": "app.example.com",
    }
    assert rules.updated({}).egress == EgressRules()
    assert rules.updated({"allow_internet_access": False}).updated({}).egress == EgressRules()


@pytest.mark.parametrize("field", ["egressProxy", "rules", "httpsPorts", "allowPublicTraffic", "denyOut"])
def test_null_is_the_same_as_absent(field: str) -> None:
    assert NetworkRules.parse({field: None}) == NetworkRules()


def test_empty_wishes_for_what_is_not_supported_are_no_wishes() -> None:
    assert NetworkRules.parse({"rules": {}, "httpsPorts": []}) == NetworkRules()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"allowOut": "1.1.1.1"}, "network.allowOut must be a list"),
        ({"denyOut": [1]}, "network.denyOut must be a list"),
        ({"denyOut": ["example.com"]}, "'example.com' is not an IP address"),
        ({"denyOut": ["0.0.0.0"]}, "all traffic is '0.0.0.0/0'"),
        ({"allowOut": ["1.1.1.1:80"]}, "'1.1.1.1:80' is not an IPv4 address"),
        ({"allowOut": ["1.1.1.1/33"]}, "'1.1.1.1/33' is not"),
        ({"allowOut": ["256.1.1.1"]}, "'256.1.1.1' is not"),
        ({"allowOut": ["::1"]}, "no IPv6"),
        ({"allowOut": ["https://example.com"]}, "is not an IPv4 address"),
        ({"allowOut": ["a.*.example.com"]}, "is not an IPv4 address"),
        ({"allowOut": ["bücher.example"]}, "ASCII"),
        ({"allowOut": [""]}, "is not an IPv4 address"),
        ({"allowOut": ["x" * 300]}, "is not an IPv4 address"),
        ({"allowOut": ["1.1.1.1"] * 501}, "at most 500"),
        ({"allowOut": ["example.com"]}, "ALL_TRAFFIC"),
        ({"allowOut": ["example.com"], "denyOut": ["8.8.8.8"]}, "ALL_TRAFFIC"),
        ({"dnsServers": ["dns.example.com"]}, "network.dnsServers: 'dns.example.com'"),
        ({"dnsServers": ["1.1.1.1"] * 11}, "at most 10"),
        ({"allowPublicTraffic": "no"}, "network.allowPublicTraffic must be true or false"),
        ({"maskRequestHost": "a b"}, "network.maskRequestHost"),
        ({"maskRequestHost": "a\r\nb"}, "network.maskRequestHost"),
        ({"egressProxy": {"address": "p:1"}}, "network.egressProxy is not supported"),
        ({"rules": {"a.example": []}}, "network.rules is not supported"),
        ({"httpsPorts": [3000]}, "network.httpsPorts is not supported"),
        ({"deny_out": []}, "network.deny_out is not known"),
    ],
)
def test_a_wish_that_cannot_be_met_names_its_field(network: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        NetworkRules.parse(network)
    assert words in caught.value.message


def test_an_update_knows_no_inbound_fields() -> None:
    with pytest.raises(InvalidRequest, match="allowPublicTraffic is not known"):
        NetworkRules().updated({"allowPublicTraffic": False})


def test_hosts_without_everything_else_denied_mean_nothing_to_an_engine() -> None:
    with pytest.raises(ValueError, match="everything else is denied"):
        EgressRules(allowed_hosts=("example.com",))


@pytest.mark.parametrize(
    ("rules", "is_open", "is_closed"),
    [
        (EgressRules(), True, False),
        (EgressRules(allowed=(IPv4Network("1.1.1.1"),)), True, False),
        (EgressRules(denied=(ALL_TRAFFIC,), allowed=(ALL_TRAFFIC,)), True, False),
        (EgressRules(denied=(IPv4Network("8.8.8.8"),)), False, False),
        (EgressRules(denied=(ALL_TRAFFIC,)), False, True),
        (EgressRules(denied=(ALL_TRAFFIC,), allowed_hosts=("example.com",)), False, False),
    ],
)
def test_rules_know_whether_they_limit_anything_or_everything(
    rules: EgressRules, is_open: bool, is_closed: bool
) -> None:
    assert (rules.is_open, rules.is_closed) == (is_open, is_closed)
