"""From requests to plans: which containers, which gateway configuration, which refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pytest

from app.catalog import Catalog
from app.engines.interface import ContainerSpec, File, Limits
from app.errors import InvalidRequest
from app.sandboxes.gateway_plan import GatewayPlan
from app.sandboxes.models import CreateSandbox, McpOptions, PodRecord, PodSecrets
from app.sandboxes.network_rules import NetworkRules
from app.sandboxes.planning import (
    SandboxPlan,
    check_known,
    make_gateway_config,
    make_pod_spec,
    plan_gateway,
    plan_sandbox,
)
from tests.unit.plans import BLUEPRINT, plan, template_of

POD = PodRecord(
    id="p1",
    sandbox_id="i1",
    secrets=PodSecrets(agent_token="agent-token", gateway_token="gateway-token", stdio_token="stdio-token"),
)
IMAGE_SERVER = """
name: shot
title: Shot
description: Takes pictures.
type: server
image: acme/shot:1
category: test
secrets:
  - {name: shot.api_key, env: SHOT_API_KEY, description: Key., required: true}
"""
REMOTE_SERVER = """
name: docs
title: Docs
description: Finds pages.
type: remote
category: test
remote:
  url: https://docs.example/mcp
  transport_type: streamable-http
  headers:
    Authorization: Bearer ${DOCS_TOKEN}
secrets:
  - {name: docs.token, env: DOCS_TOKEN, description: Token., required: true}
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    own = tmp_path_factory.mktemp("servers")
    (own / "shot.yaml").write_text(IMAGE_SERVER)
    (own / "scan.yaml").write_text("{name: scan, title: Scan, type: server, image: 'acme/scan:1'}")
    (own / "docs.yaml").write_text(REMOTE_SERVER)
    return Catalog.load(Path("catalog/servers"), own)


def test_a_template_brings_its_image_and_limits(catalog: Catalog) -> None:
    own = template_of("mine", image="mine:1", cpus=3, memory_mib=700)
    planned = plan_sandbox(CreateSandbox(template="mine", timeout_s=60), own, catalog, BLUEPRINT)
    assert planned.workspace.image == "mine:1"
    assert planned.workspace.limits == Limits(memory_mib=700, cpus=3, pids=100)


def test_a_gateway_goes_before_workspaces_where_processors_are_short(catalog: Catalog) -> None:
    shares = {
        container.role: container.limits.cpu_shares for container in plan(catalog, template="mcp-gateway").containers
    }
    assert shares["gateway"] == 4 * shares["workspace"]


def test_plans_that_differ_only_in_what_a_pod_is_told_later_have_one_recipe(catalog: Catalog) -> None:
    plain = plan(catalog, template="mcp-gateway")
    for same in (
        plan(catalog, template="base", mcp={"time": {}}),
        plan(catalog, template="mcp-gateway", envs={"A": "b"}, metadata={"c": "d"}),
        plan(catalog, template="mcp-gateway", network=NetworkRules(deny_out=("10.0.0.0/8",))),
        plan(catalog, template="mcp-gateway", mcp={"shot": {"apiKey": "k"}}),
    ):
        assert same.recipe == plain.recipe
    for other in (
        plan(catalog, template="base"),
        plan(catalog, template="mcp-gateway", network=NetworkRules(allow_internet_access=False)),
    ):
        assert other.recipe != plain.recipe


def roles(planned: SandboxPlan) -> list[str]:
    return [container.role for container in planned.containers]


def test_a_sandbox_without_servers_is_one_workspace_container(catalog: Catalog) -> None:
    planned = plan(catalog, template="base")
    assert roles(planned) == ["workspace"]
    assert planned.gateway is None


@pytest.mark.parametrize("mcp", [None, {}])
def test_the_gateway_template_has_a_gateway_also_without_servers(
    catalog: Catalog, mcp: dict[str, object] | None
) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp=mcp)
    assert roles(planned) == ["gateway", "workspace"]
    assert planned.gateway is not None
    assert planned.gateway.servers == ()


def test_the_gateway_owns_the_network_whatever_the_template(catalog: Catalog) -> None:
    assert roles(plan(catalog, template="base", mcp={"time": {}}))[0] == "gateway"


def test_only_the_workspace_may_gain_privileges_and_none_may_touch_the_network_stack(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"time": {}, "shot": {"apiKey": "k"}})
    assert [container.role for container in planned.containers if container.new_privileges] == ["workspace"]
    for container in planned.containers:
        assert not {"NET_RAW", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"} & set(container.capabilities)


def test_an_image_server_gets_its_own_container_and_its_own_credentials(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"time": {}, "shot": {"apiKey": "k-123456"}})
    gateway, workspace = planned.containers
    assert planned.gateway is not None
    transport = planned.gateway.servers[1]["transport"]
    assert (set(transport), transport["type"]) == ({"type", "token"}, "bridge")
    assert planned.gateway.image_servers == {
        "shot": ContainerSpec(
            role="server-0",
            image="acme/shot:1",
            limits=Limits(memory_mib=1024, cpus=1.0, pids=256),
            entrypoint_prefix=(
                "/.sandgate/stdio-bridge",
                "/run/sandgate/gateway.sock",
                "/.sandgate/greeting",
                "--",
            ),
            env={"SHOT_API_KEY": "k-123456"},
            files=(File(path="/.sandgate/greeting", content=f"{transport['token']}\n".encode(), mode=0o444),),
            read_only_volumes={"bridges": "/run/sandgate"},
        )
    }
    assert gateway.volumes == {"bridges": "/run/servers"}
    assert (workspace.volumes, workspace.read_only_volumes) == ({}, {})


def test_image_servers_have_tokens_that_differ_and_stay_with_those_that_stay(catalog: Catalog) -> None:
    both = plan(catalog, template="mcp-gateway", mcp={"shot": {"apiKey": "k"}, "scan": {}}).gateway
    assert both is not None
    assert len({server["transport"]["token"] for server in both.servers}) == 2
    mcp = {"shot": {"apiKey": "another"}, "scan": {}}
    changed = plan_gateway(mcp, McpOptions(), catalog, BLUEPRINT, earlier=both, unchanged=["scan"])
    assert changed.servers[1] == both.servers[1]
    assert changed.image_servers["scan"] == both.image_servers["scan"]
    assert changed.servers[0]["transport"]["token"] != both.servers[0]["transport"]["token"]
    # The container of before may still be there.
    assert changed.image_servers["shot"].role == "server-2"


def test_a_recorded_plan_is_the_same_also_one_of_an_earlier_version(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"shot": {"apiKey": "k-123456"}, "time": {}}).gateway
    assert planned is not None
    recorded = orjson.loads(orjson.dumps(planned.as_json()))
    assert GatewayPlan.from_json(recorded) == planned
    recorded["sockets"] = 8
    recorded["servers"][0]["transport"] = {"type": "socket", "path": "/run/servers/0/server-0.sock"}
    server = recorded["image_servers"]["shot"]
    del server["read_only_volumes"]
    server |= {"files": [], "volumes": {"socket-0": "/run/sandgate-server"}}
    earlier = GatewayPlan.from_json(recorded)
    kept = plan_gateway(
        {"shot": {"apiKey": "k-123456"}}, McpOptions(), catalog, BLUEPRINT, earlier=earlier, unchanged=["shot"]
    )
    assert kept.servers == (earlier.servers[0],)
    assert kept.image_servers == earlier.image_servers


def test_a_remote_server_gets_its_credential_as_a_header(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"docs": {"token": "t-123456"}})
    assert planned.gateway is not None
    (server,) = planned.gateway.servers
    assert server["transport"] == {
        "type": "http",
        "url": "https://docs.example/mcp",
        "headers": {"Authorization": "Bearer t-123456"},
    }


def test_placement_can_be_overridden(catalog: Catalog) -> None:
    request = {"template": "mcp-gateway", "mcp": {"time": {}}}
    here = plan(catalog, **request).gateway
    there = plan(catalog, **request, mcp_options=McpOptions(placement={"time": "workspace"})).gateway
    assert here is not None
    assert there is not None
    assert here.servers[0]["transport"]["type"] == "stdio"
    assert there.servers[0]["transport"]["type"] == "workspace"


def test_a_custom_server_is_cloned_and_run_in_the_workspace(catalog: Catalog) -> None:
    key = "github/acme/tool"
    planned = plan(catalog, template="mcp-gateway", mcp={key: {"runCmd": "./run", "installCmd": "make"}})
    assert planned.gateway is not None
    (server,) = planned.gateway.servers
    assert server["name"] == key
    assert server["transport"]["type"] == "workspace"
    assert server["transport"]["repository"] == "https://git.example/acme/tool"
    assert server["transport"]["install"] == "make"


def test_no_secret_is_in_the_text_of_a_plan(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"docs": {"token": "t-123456"}, "shot": {"apiKey": "k-123456"}})
    text = repr(planned) + repr(make_pod_spec(planned, POD))
    assert planned.gateway is not None
    token = planned.gateway.servers[1]["transport"]["token"]
    for secret in ("t-123456", "k-123456", "agent-token", "gateway-token", "stdio-token", token):
        assert secret not in text


def test_a_container_can_tell_its_own_control_token_and_holds_none(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"shot": {"apiKey": "k"}})
    spec = make_pod_spec(planned, POD)
    assert {container.role: container.env["SANDGATE_CONTROL_TOKEN_SHA256"] for container in spec.containers} == {
        "gateway": hashlib.sha256(b"gateway-token").hexdigest(),
        "workspace": hashlib.sha256(b"agent-token").hexdigest(),
    }
    assert all(container.files == () for container in spec.containers)


def test_the_gateway_is_told_tokens_naming_and_where_the_stdio_door_is(catalog: Catalog) -> None:
    planned = plan(catalog, template="mcp-gateway", mcp={"time": {}})
    assert planned.gateway is not None
    config = make_gateway_config(planned.gateway, McpOptions(naming="always"), POD, ["t1", "t2"])
    assert config["tokens"] == ["t1", "t2"]
    assert config["naming"] == "always"
    assert config["stdioDoor"] == {"host": "127.0.0.1", "port": 49984, "token": "stdio-token"}
    assert [server["name"] for server in config["servers"]] == ["time"]


def test_internet_access_is_open_unless_shut(catalog: Catalog) -> None:
    assert plan(catalog, template="base").egress
    assert not plan(catalog, template="base", network=NetworkRules(allow_internet_access=False)).egress


def test_an_unknown_server_is_named_with_its_nearest_match(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="Failed to start MCP gateway: .*'tiem'.*Did you mean 'time'"):
        plan(catalog, template="mcp-gateway", mcp={"tiem": {}})


def test_a_missing_credential_is_named_with_its_server(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match=r"shot.*apiKey"):
        plan(catalog, template="mcp-gateway", mcp={"shot": {}})


def test_a_value_of_the_wrong_type_is_refused_without_being_repeated(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match=r"shot.*apiKey") as refusal:
        plan(catalog, template="mcp-gateway", mcp={"shot": {"apiKey": ["sesame-1234"]}})
    assert "sesame" not in refusal.value.message


def test_placement_of_a_server_that_is_not_asked_for_is_refused(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="'git'"):
        plan(catalog, template="mcp-gateway", mcp={}, mcp_options=McpOptions(placement={"git": "gateway"}))


def test_a_pull_checks_that_servers_are_known(catalog: Catalog) -> None:
    check_known(["time", "github/acme/tool"], catalog)
    with pytest.raises(InvalidRequest, match="'nope'"):
        check_known(["time", "nope"], catalog)


def test_a_server_given_inline_needs_no_catalog(catalog: Catalog) -> None:
    planned = plan(
        catalog,
        template="base",
        mcp={
            "mine": {"command": "npx", "args": ["thing"]},
            "theirs": {"url": "https://mcp.example/mcp", "type": "sse"},
        },
    )
    assert planned.gateway is not None
    first, second = planned.gateway.servers
    assert first["transport"]["type"] == "workspace"
    assert second["transport"] == {"type": "sse", "url": "https://mcp.example/mcp", "headers": {}}
    assert planned.gateway.fingerprints == {}


def test_a_key_of_the_catalog_cannot_be_given_inline(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="time"):
        plan(catalog, template="base", mcp={"time": {"command": "sh"}})


def test_a_sandbox_that_may_reach_some_hosts_only_has_a_way_out(catalog: Catalog) -> None:
    some = NetworkRules(allow_internet_access=False, allow_out=("10.0.0.0/8",))
    planned = plan(catalog, template="base", network=some)
    assert planned.egress
    assert planned.egress_rules == some.egress
