"""Which port of which sandbox a request is for. Sources: E2B's SDKs and proxy, as the wire contract records them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from e2b.sandbox.signature import get_signature

from app.edge.answers import Refusal
from app.edge.routing import Asleep, Route, Router
from tests.edge.serving import Pod, Pods

PODS = Pods(
    Pod("i1", "127.0.0.1", "token-one"),
    Pod("i2", "127.0.0.2", "token-two"),
    Pod("ipaused", None, "token-three"),
    Pod("iasleep", None, "token-four", may_resume=True),
    Pod("iprivate", "127.0.0.3", "token-five", traffic_access_token="traffic-token"),
    Pod("iprivateasleep", None, "token-six", traffic_access_token="traffic-token", may_resume=True),
)
NOT_FOUND = "The sandbox was not found"


def resolve(
    path: str = "/",
    *,
    host: str = "127.0.0.1:8080",
    headers: dict[str, str] | None = None,
    pairs: list[tuple[str, str]] | None = None,
    query: str = "",
    method: str = "GET",
    domain: str | None = "sbx.example.test:8443",
    pods: Pods = PODS,
) -> tuple[Any, ...] | None:
    """(sandbox, port, path) of a route, (status, message) of a refusal, (sandbox,) of one asleep, None for the API."""
    given = [("host", host), *(headers or {}).items(), *(pairs or [])]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in given],
    }
    match Router(pods, sandbox_domain=domain).resolve(scope):
        case Route() as route:
            return route.target.sandbox_id, route.port, route.path.decode()
        case Refusal() as refusal:
            return refusal.status, refusal.message
        case Asleep() as asleep:
            return (asleep.sandbox_id,)
        case _:
            return None


def routed(sandbox: str, port: str, path: str = "/x") -> tuple[Any, ...] | None:
    return resolve(path, headers={"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": port})


def test_both_headers_name_the_sandbox_and_its_port() -> None:
    assert routed("i1", "8000") == ("i1", 8000, "/x")


def test_headers_come_before_the_host_and_before_the_apis_own_paths() -> None:
    both = {"E2b-Sandbox-Id": "i1", "E2b-Sandbox-Port": "49983"}
    assert resolve("/health", headers=both, host="50005-i2.sbx.example.test") == ("i1", 49983, "/health")
    assert resolve("/v2/sandboxes", headers=both) == ("i1", 49983, "/v2/sandboxes")
    assert resolve("/sandboxes/i2/mcp", headers=both) == ("i1", 49983, "/sandboxes/i2/mcp")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "localhost", "sandbox.example.test"]
)
@pytest.mark.parametrize("header", [{"E2b-Sandbox-Id": "i1"}, {"E2b-Sandbox-Port": "49983"}])
def test_one_header_alone_is_refused_where_the_host_says_nothing(host: str, header: dict[str, str]) -> None:
    outcome = resolve("/files", host=host, headers=header)
    assert outcome is not None
    assert outcome[0] == 400
    assert "is missing" in outcome[1]


def test_one_header_alone_is_ignored_where_the_host_names_the_sandbox() -> None:
    outcome = resolve("/x", host="8000-i2.sbx.example.test:8443", headers={"E2b-Sandbox-Port": "1"})
    assert outcome == ("i2", 8000, "/x")


@pytest.mark.parametrize(
    "port", ["", "0", "00", "65536", "70000", "123456", "-1", "+80", "8_0", " 80", "80 ", "0x50", "１２", "http"]
)
def test_a_port_that_is_not_one_is_refused(port: str) -> None:
    outcome = routed("i1", port)
    assert outcome is not None
    assert outcome[0] == 400


@pytest.mark.parametrize("sandbox", ["", "I1", "../i1", "i1/..", "i1.i2", "<b>", "i1 i2", "-i1", "i1\\"])
def test_an_id_that_is_not_one_is_refused(sandbox: str) -> None:
    outcome = routed(sandbox, "80")
    assert outcome is not None
    assert outcome[0] == 400


@pytest.mark.parametrize("name", ["E2b-Sandbox-Id", "E2b-Sandbox-Port"])
def test_a_routing_header_given_twice_is_refused(name: str) -> None:
    both = {"E2b-Sandbox-Id": "i1", "E2b-Sandbox-Port": "80"}
    outcome = resolve(headers=both, pairs=[(name, both[name])])
    assert outcome is not None
    assert outcome[0] == 400


def test_unknown_and_paused_sandboxes_are_not_found() -> None:
    assert routed("inobody", "80") == (502, NOT_FOUND)
    assert routed("ipaused", "80") == (502, NOT_FOUND)


def test_an_older_id_is_cut_at_the_hyphen() -> None:
    assert routed("i1-c0ffee", "80") == ("i1", 80, "/x")
    assert resolve("/x", host="80-i1-c0ffee.sbx.example.test") == ("i1", 80, "/x")
    assert resolve("/sandboxes/i1-c0ffee/mcp") == ("i1", 50005, "/mcp")


@pytest.mark.parametrize(
    "host", ["50005-i1.sbx.example.test", "50005-I1.SBX.Example.test:8443", "50005-i1.sbx.example.test.:1"]
)
def test_the_host_names_port_and_sandbox(host: str) -> None:
    assert resolve("/mcp", host=host) == ("i1", 50005, "/mcp")


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_host_with_an_impossible_port_is_refused(port: str) -> None:
    outcome = resolve(host=f"{port}-i1.sbx.example.test")
    assert outcome is not None
    assert outcome[0] == 400


@pytest.mark.parametrize(
    "host",
    [
        "api.sbx.example.test",
        "sbx.example.test",
        "i1.sbx.example.test",
        "80-i1.x.sbx.example.test",
        "80-i1.other.test",
        "",
    ],
)
def test_any_other_host_is_the_apis(host: str) -> None:
    assert resolve(host=host) is None


def test_without_a_domain_hosts_are_not_looked_at() -> None:
    assert resolve(host="50005-i1.sbx.example.test", domain=None) is None


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_the_mcp_path_leads_to_the_gateway(method: str) -> None:
    assert resolve("/sandboxes/i1/mcp", method=method) == ("i1", 50005, "/mcp")
    assert resolve("/sandboxes/i1/mcp/a%2Fb/", method=method) == ("i1", 50005, "/mcp/a%2Fb/")


def test_changing_the_servers_of_a_sandbox_is_for_the_api() -> None:
    assert resolve("/sandboxes/i1/mcp", method="PATCH") is None
    assert resolve("/sandboxes/i1/mcp/more", method="PATCH") == ("i1", 50005, "/mcp/more")


@pytest.mark.parametrize(
    "path", ["/sandboxes/i1", "/sandboxes/i1/mcpx", "/sandboxes//mcp", "/sandboxes/i1/connect", "//sandboxes/i1/mcp"]
)
def test_other_paths_are_the_apis(path: str) -> None:
    assert resolve(path) is None


def test_the_mcp_path_of_an_unknown_sandbox_is_not_found() -> None:
    assert resolve("/sandboxes/inobody/mcp") == (502, NOT_FOUND)


@pytest.mark.parametrize("port", ["49984", "50006"])
def test_private_ports_do_not_exist(port: str) -> None:
    assert routed("i1", port) == (404, "Not found")
    assert resolve(host=f"{port}-i1.sbx.example.test") == (404, "Not found")


@pytest.mark.parametrize(
    "path",
    [
        "/init", "/init/", "/INIT", "/init/x", "//init", "/./init", "/x/../init", "/x/%2e%2e/init", "/%69nit",
        "/%2569nit", "/in%69t", "/%2finit", "/init%2f", "/init%00", "/init;x", "/\\init", "/init%20", "/.", "/..",
        "init", "", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade",
    ],
)  # fmt: skip
def test_the_agents_internal_paths_do_not_exist(path: str) -> None:
    assert routed("i1", "49983", path) == (404, "Not found")


@pytest.mark.parametrize("path", ["/", "/health", "/files", "/files/compose", "/process.Process/Start", "/initial"])
def test_the_agents_other_paths_pass(path: str) -> None:
    assert routed("i1", "49983", path) == ("i1", 49983, path)


@pytest.mark.parametrize("path", ["/init", "//init", "/%69nit", "/a/../b"])
def test_paths_of_other_ports_pass_as_they_came(path: str) -> None:
    assert routed("i1", "8000", path) == ("i1", 8000, path)


def signed(
    method: str, operation: str, *, token: str = "token-two", expires_in_s: int | None = None, **changed: str
) -> Any:
    made = get_signature("/home/user/ä b+c", operation, "user", token, expires_in_s)  # type: ignore[arg-type]
    query = {"path": "/home/user/ä b+c", "username": "user", "signature": made["signature"]}
    if made["expiration"] is not None:
        query["signature_expiration"] = str(made["expiration"])
    return resolve("/files", method=method, query=urlencode(query | changed))


@pytest.mark.parametrize(("method", "operation"), [("GET", "read"), ("HEAD", "read"), ("POST", "write")])
def test_a_signed_url_without_routing_leads_to_the_sandbox_that_signed_it(method: str, operation: str) -> None:
    assert signed(method, operation) == ("i2", 49983, "/files")
    assert signed(method, operation, expires_in_s=60) == ("i2", 49983, "/files")


def test_an_expired_signature_is_left_to_the_agent() -> None:
    assert signed("GET", "read", expires_in_s=-60) == ("i2", 49983, "/files")


def test_a_signed_url_of_a_paused_sandbox_is_not_found() -> None:
    assert signed("GET", "read", token="token-three") == (502, NOT_FOUND)


def test_what_is_alive_and_not_taken_up_yet_is_not_said_to_be_missing() -> None:
    pods = Pods(Pod("i1", "127.0.0.1", "token-one"))
    pods.awaited = {"isoon"}
    not_yet = (503, "The sandbox is not available yet. Try again in a moment.")
    headers = {"E2b-Sandbox-Id": "isoon", "E2b-Sandbox-Port": "49983"}
    assert resolve(headers=headers, pods=pods) == not_yet
    assert resolve("/sandboxes/isoon/mcp", pods=pods) == not_yet
    assert resolve("/files", query="path=a&signature=v1_nobody's", pods=pods) == not_yet
    assert resolve("/sandboxes/ielse/mcp", pods=pods) == (502, NOT_FOUND)
    assert resolve("/sandboxes/i1/mcp", pods=pods) == ("i1", 50005, "/mcp")


def test_a_signature_that_fits_no_sandbox_is_refused() -> None:
    invalid = (401, "invalid signature")
    assert signed("POST", "read") == invalid
    assert signed("GET", "read", token="nobodys") == invalid
    assert signed("GET", "read", path="/etc/shadow") == invalid
    assert signed("GET", "read", username="root") == invalid
    assert signed("GET", "read", expires_in_s=60, signature_expiration="99999999999") == invalid
    assert resolve("/files", query="path=/x&signature=") == invalid
    assert resolve("/files", query="path=/x&signature=v1_%C3%A9") == invalid


def test_files_without_a_signature_are_the_apis() -> None:
    assert resolve("/files", query="path=/x") is None


MISSING = (
    403,
    "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
)
INVALID = (
    403,
    "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid",
)
NOT_RESUMED = (
    403,
    "This sandbox can't be resumed with the credentials provided. Check your access token and try again.",
)


@pytest.mark.parametrize("port", ["80", "8000", "50005"])
def test_a_private_sandbox_asks_for_its_traffic_token_at_all_ports_but_the_agents(port: str) -> None:
    to = {"E2b-Sandbox-Id": "iprivate", "E2b-Sandbox-Port": port}
    assert resolve(headers=to) == MISSING
    assert resolve(headers=to | {"E2b-Traffic-Access-Token": ""}) == MISSING
    assert resolve(headers=to | {"E2b-Traffic-Access-Token": "traffic-tokeN"}) == INVALID
    assert resolve(headers=to | {"E2b-Traffic-Access-Token": "token-five"}) == INVALID
    assert resolve(headers=to | {"E2b-Traffic-Access-Token": "traffic-token"}) == ("iprivate", int(port), "/")


def test_a_private_sandbox_asks_for_its_traffic_token_on_every_way_to_a_port() -> None:
    token = {"E2B-TRAFFIC-ACCESS-TOKEN": "traffic-token"}
    assert resolve(host="8000-iprivate.sbx.example.test") == MISSING
    assert resolve(host="8000-iprivate.sbx.example.test", headers=token) == ("iprivate", 8000, "/")
    assert resolve("/sandboxes/iprivate/mcp") == MISSING
    assert resolve("/sandboxes/iprivate/mcp", headers=token) == ("iprivate", 50005, "/mcp")


def test_the_agent_of_a_private_sandbox_has_a_token_of_its_own() -> None:
    assert routed("iprivate", "49983", "/health") == ("iprivate", 49983, "/health")


def test_a_traffic_token_opens_no_private_port() -> None:
    headers = {"E2b-Sandbox-Id": "iprivate", "E2b-Traffic-Access-Token": "traffic-token"}
    for port in ("49984", "50006"):
        assert resolve(headers=headers | {"E2b-Sandbox-Port": port}) == (404, "Not found")


def test_a_public_sandbox_takes_any_traffic_token() -> None:
    headers = {"E2b-Sandbox-Id": "i1", "E2b-Sandbox-Port": "80", "E2b-Traffic-Access-Token": "whatever"}
    assert resolve(headers=headers) == ("i1", 80, "/")


def test_traffic_to_a_paused_sandbox_that_it_may_resume_finds_it_asleep() -> None:
    assert routed("iasleep", "8000") == ("iasleep",)
    assert resolve("/sandboxes/iasleep/mcp") == ("iasleep",)
    assert resolve(host="3000-iasleep.sbx.example.test") == ("iasleep",)


def test_only_who_could_use_the_agent_resumes_a_sandbox_by_its_port() -> None:
    to = {"E2b-Sandbox-Id": "iasleep", "E2b-Sandbox-Port": "49983"}
    assert resolve("/health", headers=to) == NOT_RESUMED
    assert resolve("/health", headers=to | {"X-Access-Token": "token-one"}) == NOT_RESUMED
    assert resolve("/health", headers=to | {"X-Access-Token": "token-four"}) == ("iasleep",)
    assert resolve("/files", headers=to, query="path=/x&signature=v1_forged") == NOT_RESUMED
    assert signed("GET", "read", token="token-four") == ("iasleep",)


def test_a_sandbox_is_not_resumed_for_what_would_be_refused() -> None:
    assert routed("iasleep", "50006") == (404, "Not found")
    assert routed("iasleep", "49983", "/init") == (404, "Not found")
    assert routed("iprivateasleep", "8000") == MISSING
    headers = {"E2b-Sandbox-Id": "iprivateasleep", "E2b-Sandbox-Port": "8000"}
    assert resolve(headers=headers | {"E2b-Traffic-Access-Token": "traffic-token"}) == ("iprivateasleep",)
