"""Which address ranges and which rules the guard chooses, from what the engine's host looks like."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from app.engines.network_guard import AllowedTarget, GuardNames, HostFacts, free_subnet, make_removal, make_ruleset
from app.errors import EngineError

_ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
)
_RESOLV_CONF = "# made by hand\nnameserver 10.0.0.2\nnameserver 127.0.0.53\nnameserver fe80::1\nsearch corp.example\n"


def test_a_survey_gives_routes_but_the_default_and_resolvers_that_pods_ask_themselves() -> None:
    table = "table inet x {\n}\n"
    assert HostFacts.from_survey(f"routes\n{_ROUTES}resolvers\n{_RESOLV_CONF}ipv6\nyes\npods\n{table}") == HostFacts(
        routes=(IPv4Network("172.17.0.0/16"), IPv4Network("192.0.2.0/24")),
        resolvers=(IPv4Address("10.0.0.2"),),
        has_ipv6=True,
        pods_table=table,
    )


def test_a_survey_of_a_bare_host_is_read_too() -> None:
    facts = HostFacts.from_survey("routes\nIface\tDestination\nresolvers\nipv6\npods\n")
    assert facts == HostFacts(routes=(), resolvers=(), has_ipv6=False, pods_table="")


def test_the_first_free_range_is_taken() -> None:
    assert free_subnet([]) == IPv4Network("198.18.0.0/20")
    assert free_subnet([IPv4Network("198.18.0.0/24")]) == IPv4Network("198.18.16.0/20")
    assert free_subnet([IPv4Network("198.18.0.0/15"), IPv4Network("172.16.0.0/16")]) == IPv4Network("172.17.0.0/20")


def test_no_free_range_is_an_error() -> None:
    with pytest.raises(EngineError, match="no free private address range"):
        free_subnet([IPv4Network("0.0.0.0/0")])


@pytest.mark.parametrize("installation", ["default", "x" * 32, "a-b"])
def test_bridge_names_fit_an_interface_name_and_differ(installation: str) -> None:
    names = GuardNames.of(installation)
    assert len(names.egress_bridge) <= 15
    assert len(names.offline_bridge) <= 15
    others = GuardNames.of(f"{installation}2")
    assert {names.egress_bridge, names.offline_bridge, names.table, names.proxy_uid}.isdisjoint(
        {others.egress_bridge, others.offline_bridge, others.table, others.proxy_uid}
    )


def test_an_allowed_target_is_an_address_or_network_with_a_port() -> None:
    assert AllowedTarget.parse("10.0.0.5:3128") == AllowedTarget(IPv4Network("10.0.0.5/32"), 3128)
    assert AllowedTarget.parse("10.0.0.0/8:443") == AllowedTarget(IPv4Network("10.0.0.0/8"), 443)


@pytest.mark.parametrize("text", ["", "10.0.0.5", "10.0.0.5:", "10.0.0.5:0", "10.0.0.5:65536", "host:80", "::1:80"])
def test_an_allowed_target_that_cannot_be_read_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not <IPv4|the port must be") as caught:
        AllowedTarget.parse(text)
    assert repr(text) in str(caught.value)


def test_the_rules_replace_earlier_ones_in_one_transaction() -> None:
    names = GuardNames.of("default")
    ruleset = make_ruleset(names, allowed=[], resolvers=[])
    assert ruleset.startswith(f"table inet {names.table}\ndelete table inet {names.table}\ntable inet {names.table} {{")
    assert make_removal(names) == f"table inet {names.table}\ndelete table inet {names.table}"


def test_exceptions_come_after_other_pods_and_the_offline_network_are_shut_off() -> None:
    names = GuardNames.of("default")
    ruleset = make_ruleset(
        names, allowed=[AllowedTarget.parse("10.0.0.5:3128")], resolvers=[IPv4Address("169.254.169.254")]
    )
    in_order = [
        f'oifname {{ "{names.egress_bridge}", "{names.offline_bridge}" }} drop',
        f'iifname "{names.offline_bridge}" reject',
        "ip daddr 10.0.0.5/32 tcp dport 3128 accept",
        "ip daddr 169.254.169.254 meta l4proto { tcp, udp } th dport 53 accept",
        "type filter hook input priority filter - 10",
        "ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 } reject",
    ]
    places = [ruleset.index(rule) for rule in in_order]
    assert places == sorted(places)


def test_no_rule_uses_a_named_set_which_crashes_older_tools_of_the_host() -> None:
    rules = make_ruleset(GuardNames.of("default"), allowed=[AllowedTarget.parse("10.0.0.5:1")], resolvers=[])
    assert "set " not in rules
