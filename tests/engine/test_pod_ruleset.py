"""Which nft text a pod's rules become, and which address a pod gets. What the text does: test_pod_rules_on_docker."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from app.engines.interface import ALL_TRAFFIC, EgressRules
from app.engines.network_guard import AllowedTarget, GuardNames
from app.engines.pod_addresses import PodAddresses, split_subnet
from app.engines.pod_ruleset import HostView, addresses_in, make_removal, make_transaction
from app.errors import EngineError

_NAMES = GuardNames.of("default")
_TABLE = f"inet {_NAMES.pods_table}"
_HOST = HostView((IPv4Address("10.0.0.2"),), (AllowedTarget.parse("10.0.0.5:3128"),))
_ONE, _TWO = IPv4Address("198.18.8.1"), IPv4Address("198.18.8.2")


def rules_of(chain: str, rules: EgressRules) -> list[str]:
    """The rules that the transaction puts into a chain of `_ONE`."""
    start = f"add rule {_TABLE} {chain}_198_18_8_1 "
    text = make_transaction(_NAMES, _HOST, changed={_ONE: rules}, gone=[], kept=[])
    return [part.removeprefix(start) for part in text.split("; ") if part.startswith(start)]


def test_allowed_addresses_come_before_denied_ones_without_overlaps() -> None:
    rules = EgressRules(
        allowed=(IPv4Network("1.1.1.1"), IPv4Network("1.1.1.0/24")), denied=(IPv4Network("1.1.0.0/16"),)
    )
    assert rules_of("out", rules)[1:] == ["ip daddr { 1.1.1.0/24 } accept", "ip daddr { 1.1.0.0/16 } goto refuse"]
    assert rules_of("in", rules)[1:] == ["ip saddr { 1.1.1.0/24 } accept", "ip saddr { 1.1.0.0/16 } drop"]
    assert rules_of("divert", rules) == []


def test_denying_a_range_leaves_the_hosts_name_servers_in_it_open() -> None:
    asked = "ip daddr { 10.0.0.2/32 } meta l4proto { tcp, udp } th dport 53 accept"
    assert rules_of("out", EgressRules(denied=(IPv4Network("10.0.0.0/8"),)))[0] == asked
    assert rules_of("out", EgressRules(denied=(ALL_TRAFFIC,))) == ["goto refuse"]


def test_hosts_open_name_servers_and_divert_what_is_not_allowed_by_address() -> None:
    rules = EgressRules(allowed=(IPv4Network("1.1.1.1"),), allowed_hosts=("a.example",), denied=(ALL_TRAFFIC,))
    assert rules_of("out", rules)[0].startswith("ip daddr { 10.0.0.2/32 }")
    assert rules_of("divert", rules) == [
        "ip daddr { 1.1.1.1/32 } accept",
        "tcp dport 80 redirect to :15080",
        "tcp dport 443 redirect to :15443",
    ]


@pytest.mark.parametrize(
    ("servers", "first"),
    [(("9.9.9.9",), "ip daddr { 9.9.9.9/32 } accept"), ((), "goto refuse")],
)
def test_name_servers_that_are_given_take_the_place_of_the_hosts(servers: tuple[str, ...], first: str) -> None:
    given = tuple(map(IPv4Address, servers))
    assert (
        rules_of("out", EgressRules(allowed_hosts=("a.example",), denied=(ALL_TRAFFIC,), name_servers=given))[0]
        == first
    )


def test_a_transaction_sends_packets_of_every_limited_pod_to_its_chains() -> None:
    text = make_transaction(_NAMES, _HOST, changed={_TWO: EgressRules(denied=(ALL_TRAFFIC,))}, gone=[], kept=[_ONE])
    assert "\n" not in text
    for match, chain in (("ip saddr", "out"), ("ip daddr", "in"), ("ip saddr", "divert")):
        elements = f"198.18.8.1 : jump {chain}_198_18_8_1, 198.18.8.2 : jump {chain}_198_18_8_2"
        assert f"{match} vmap {{ {elements} }}" in text
    assert f"flush chain {_TABLE} out_198_18_8_1" not in text


def test_chains_of_a_pod_that_is_gone_are_deleted_after_nothing_leads_to_them() -> None:
    text = make_transaction(_NAMES, _HOST, changed={}, gone=[_ONE], kept=[])
    assert "vmap" not in text
    assert text.index(f"flush chain {_TABLE} through_host") < text.index(f"delete chain {_TABLE} out_198_18_8_1")


def test_the_proxy_is_kept_from_what_pods_are_kept_from() -> None:
    text = make_transaction(_NAMES, _HOST, changed={}, gone=[], kept=[])
    in_order = [
        "ip daddr 10.0.0.5/32 tcp dport 3128 accept",
        f'oifname {{ "{_NAMES.egress_bridge}", "{_NAMES.offline_bridge}" }} reject',
        "fib daddr type != unicast reject",
        "169.254.0.0/16",
    ]
    places = [text.index(part) for part in in_order]
    assert places == sorted(places)


def test_only_the_proxy_is_judged_by_its_rules() -> None:
    text = make_transaction(_NAMES, _HOST, changed={}, gone=[], kept=[])
    of_the_host = [rule for rule in text.split("; ") if rule.startswith(f"add rule {_TABLE} from_host ")]
    assert of_the_host == [f"add rule {_TABLE} from_host meta skuid {_NAMES.proxy_uid} goto proxy_sends"]


def test_no_rule_uses_a_named_set_which_crashes_older_tools_of_the_host() -> None:
    rules = EgressRules(allowed=(IPv4Network("1.1.1.1"),), allowed_hosts=("a.example",), denied=(ALL_TRAFFIC,))
    text = make_transaction(_NAMES, _HOST, changed={_ONE: rules}, gone=[_TWO], kept=[])
    assert "add set" not in text
    assert "add map" not in text
    assert "@" not in text


def test_addresses_with_rules_are_read_from_what_nft_prints() -> None:
    listing = (
        "table inet x {\n\tchain out_198_18_8_1 {\n\t}\n\n\tchain in_198_18_8_2 {\n\t\tjump out_198_18_8_3 \n\t}\n}"
    )
    assert addresses_in(listing) == {_ONE}
    assert addresses_in("") == frozenset()


def test_removing_is_silent_where_there_is_no_table() -> None:
    assert make_removal(_NAMES) == f"add table {_TABLE}; delete table {_TABLE}"


def test_pods_get_addresses_of_the_half_that_the_engine_does_not_hand_out_of() -> None:
    subnet = IPv4Network("198.18.0.0/20")
    engines, ours = split_subnet(subnet)
    address = PodAddresses(subnet).take("a")
    assert address in ours
    assert address not in engines
    assert subnet[1] in engines


def test_a_pod_keeps_its_address_and_a_freed_one_comes_round_last() -> None:
    addresses = PodAddresses(IPv4Network("198.18.0.0/28"))
    first = addresses.take("a")
    assert addresses.take("a") == first
    addresses.release("a")
    addresses.release("a")
    others = [addresses.take(name) for name in "bcdefg"]
    assert first not in others
    assert addresses.take("h") == first
    with pytest.raises(EngineError, match="All 7 addresses"):
        addresses.take("i")


def test_an_address_of_a_pod_that_was_there_before_is_not_handed_out() -> None:
    addresses = PodAddresses(IPv4Network("198.18.0.0/28"))
    addresses.hold("old", IPv4Address("198.18.0.8"))
    assert addresses.take("new") == IPv4Address("198.18.0.9")
    assert addresses.of("old") == IPv4Address("198.18.0.8")
