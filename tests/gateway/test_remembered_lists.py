"""Lists that the control plane remembers: there before the server is, replaced by what the server says itself."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mcp import MCPError
from sandgate_gateway.servers.fleet import STARTS_AT_ONCE

from tests.gateway.running_gateway import RunningGateway, bad, echo, held_up, scripted, stdio
from tests.gateway.wire import LegacyWire, messages, modern
from tests.waiting import BOUND_S


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


async def tool_names(gateway: RunningGateway) -> list[str]:
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        answer = await modern(http, gateway.url, "tools/list")
        return [entry["name"] for entry in answer.json()["result"]["tools"]]


async def until_settled(gateway: RunningGateway) -> dict[str, Any]:
    return await asyncio.to_thread(gateway.status, BOUND_S)


async def test_what_a_server_offers_can_be_read_and_handed_back(gateway: RunningGateway) -> None:
    gateway.configure({"echo": echo()})
    offer = gateway.lists("echo")
    assert [entry["name"] for entry in offer["tools"]] == ["echo", "add", "whoami", "slow", "fail", "exit"]
    assert offer["prompts"][0]["name"] == "greet"
    assert offer["resources"][0]["uri"] == "echo://readme"
    assert offer["resourceTemplates"] == []
    assert offer["capabilities"].keys() >= {"tools", "prompts", "resources"}
    assert gateway.status()["echo"]["digest"] == offer["digest"]
    gateway.configure({})
    gateway.configure({"echo": {"transport": echo(), "remembered": offer}})
    assert gateway.lists("echo") == offer


@pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("bad", 409)])
async def test_lists_of_a_server_that_has_listed_nothing_cannot_be_read(
    gateway: RunningGateway, name: str, status: int
) -> None:
    gateway.configure({"bad": bad("exits")})
    answer = gateway.control.get("/lists", params={"server": name})
    assert answer.status_code == status
    assert name in answer.json()["error"]


async def test_of_a_server_that_fails_to_answer_for_a_list_the_others_can_be_read(gateway: RunningGateway) -> None:
    gateway.configure({"s": scripted(tools=[tool("t")], resources=None, capabilities={"tools": {}, "resources": {}})})
    assert gateway.status()["s"]["digest"] is None
    assert gateway.control.get("/lists", params={"server": "s"}).status_code == 409
    lists = gateway.control.get("/lists", params={"server": "s", "partial": "1"}).raise_for_status().json()
    assert ([entry["name"] for entry in lists["tools"]], lists["resources"]) == (["t"], [])
    assert lists["digest"].startswith("sha256:")


async def test_a_remembered_server_is_listed_before_it_is_up_and_the_first_call_waits_for_it(
    gateway: RunningGateway, folder: Path
) -> None:
    gate = folder / "gate"
    server = held_up({"tools": [tool("t")]}, gate)
    remembered = {"tools": [tool("t")], "capabilities": {"tools": {}}, "instructions": "Be kind."}
    gateway.put_config({"s": {"transport": server, "remembered": remembered}})
    status = gateway.status(BOUND_S, until="listed")["s"]
    assert (status["state"], status["listed"], status["tools"], status["digest"]) == ("starting", True, 1, None)
    assert await tool_names(gateway) == ["t"]
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert session.opened["instructions"] == "## s\nBe kind."
        assert session.opened["capabilities"] == {"tools": {"listChanged": True}}
        call = asyncio.create_task(session.call("t"))
        assert not (await asyncio.wait({call}, timeout=0.2))[0]
        gate.touch()
        assert "t done by" in str(await call)
    assert gateway.status()["s"]["state"] == "ready"


async def test_remembered_servers_start_in_turn_and_one_that_is_called_at_once(
    gateway: RunningGateway, folder: Path
) -> None:
    began = folder / "began"
    began.touch()
    names = [f"s{number}" for number in range(STARTS_AT_ONCE + 2)]
    *others, last = names

    def server(name: str) -> dict[str, Any]:
        wait = f'echo {name} >> {began}; while [ ! -e {folder}/{name} ]; do sleep 0.02; done; exec "$@"'
        transport = scripted(tools=[tool(f"call-{name}")])
        transport |= {"command": ["/bin/sh", "-c", wait, "sh", *transport["command"]]}
        return {"transport": transport, "remembered": {"tools": [tool(f"call-{name}")]}}

    gateway.put_config({name: server(name) for name in names})
    async with httpx.AsyncClient(timeout=BOUND_S) as http, asyncio.timeout(BOUND_S):
        while len(began.read_text().split()) < STARTS_AT_ONCE:
            await asyncio.sleep(0.02)
        (folder / last).touch()
        answer = await modern(http, gateway.url, "tools/call", {"name": f"call-{last}", "arguments": {}})
        assert f"call-{last} done" in answer.text
    # What begins later, because it is its turn, is behind those that begin together.
    assert sorted(began.read_text().split()[:STARTS_AT_ONCE]) == sorted(others[:STARTS_AT_ONCE])
    assert gateway.status()[others[0]]["state"] == "starting"
    for name in others:
        (folder / name).touch()
    assert {status["state"] for status in (await until_settled(gateway)).values()} == {"ready"}
    assert sorted(began.read_text().split()) == sorted(names)


async def test_what_the_server_says_itself_replaces_what_was_remembered_and_is_announced(
    gateway: RunningGateway, folder: Path
) -> None:
    gate = folder / "gate"
    server = held_up({"tools": [tool("new")]}, gate)
    gateway.put_config({"s": {"transport": server, "remembered": {"tools": [tool("old")]}}})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            assert await tool_names(gateway) == ["old"]
            gate.touch()
            async for line in stream.aiter_lines():
                if "notifications/tools/list_changed" in line and await tool_names(gateway) == ["new"]:
                    break
        assert "Unknown tool: old" in str(await session.call("old"))


async def test_lists_that_are_as_remembered_are_not_announced(gateway: RunningGateway, folder: Path) -> None:
    gate = folder / "gate"
    remembered = {"tools": [tool("t")], "capabilities": {"tools": {"listChanged": True}}}
    gateway.put_config(
        {"s": {"transport": held_up({"tools": [tool("t")]}, gate), "remembered": remembered}, "other": scripted()}
    )
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            gate.touch()
            await until_settled(gateway)
            # A later, real change is the first that is announced.
            await session.call("t", {"do": "rename", "tools": [tool("other")]})
            told = [line async for line in first_events(stream, 1)]
        assert "tools/list_changed" in told[0]
        assert await tool_names(gateway) == ["other"]


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_call_that_waits_for_a_server_goes_to_the_one_that_takes_its_place(
    gateway: RunningGateway, folder: Path, is_replaced: bool
) -> None:
    remembered = {"tools": [tool("t")]}
    never = held_up({"tools": [tool("t")]}, folder / "never")
    gateway.put_config({"s": {"transport": never, "remembered": remembered}})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        call = asyncio.create_task(session.call("t"))
        assert not (await asyncio.wait({call}, timeout=0.2))[0]
        other = {"s": {"transport": scripted(tools=[tool("t")])}} if is_replaced else {}
        await asyncio.to_thread(gateway.put_config, other)
        assert ("t done by" if is_replaced else "Unknown tool: t") in str(await call)


async def first_events(stream: httpx.Response, count: int) -> Any:
    async for line in stream.aiter_lines():
        if line.startswith("data: {"):
            yield line
            count -= 1
            if not count:
                return


async def test_a_remembered_server_that_fails_is_off_the_list_and_its_calls_tell_why(
    gateway: RunningGateway, folder: Path
) -> None:
    gate = folder / "gate"
    fails = stdio(["/bin/sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 4"])
    remembered = {"tools": [tool("t")], "prompts": [{"name": "p"}], "resources": [{"uri": "memo:x", "name": "x"}]}
    gateway.put_config({"s": {"transport": fails, "remembered": remembered}, "echo": echo()})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        async with http.stream("GET", gateway.url, headers=session.headers) as stream:
            waiting = asyncio.create_task(session.call("t"))
            assert "t" in await tool_names(gateway)
            gate.touch()
            async for line in stream.aiter_lines():
                if "notifications/tools/list_changed" in line and "t" not in await tool_names(gateway):
                    break
        failure = "server 's' exited with code 4 before it answered initialize"
        assert failure in str(await waiting)
        for answer in (
            await session.call("t"),
            await session.call("s_t"),
            messages(await session.post("prompts/get", {"name": "p"}))[-1],
            messages(await session.post("resources/read", {"uri": "memo:x"}))[-1],
        ):
            assert answer["error"]["message"] == failure
            assert answer["error"]["data"] == {"server": "s"}
    status = gateway.status()["s"]
    assert (status["state"], status["listed"], status["tools"]) == ("failed", False, 0)


@pytest.mark.parametrize("name", ["t one", "t_one", "owner_repo_t_one"])
async def test_a_failed_server_is_known_by_every_name_its_tools_may_have_had(
    gateway: RunningGateway, name: str
) -> None:
    gateway.configure({"owner/repo": {"transport": bad("exits"), "remembered": {"tools": [tool("t one")]}}})
    async with gateway.client("legacy") as client:
        with pytest.raises(MCPError, match="server 'owner/repo' exited with code 3"):
            await client.call_tool(name, {})


async def test_a_lazy_server_runs_from_its_first_call_on(gateway: RunningGateway) -> None:
    entry = {"transport": echo(), "start": "lazy", "remembered": {"tools": [tool("echo")]}}
    status = gateway.configure({"echo": entry})["echo"]
    assert (status["state"], status["listed"], status["tools"]) == ("idle", True, 1)
    assert await tool_names(gateway) == ["echo"]
    assert psutil.Process(gateway.pid).children() == []
    async with gateway.client("legacy") as client:
        assert (await client.call_tool("echo", {"text": "hello"})).structured_content == {"result": "hello"}
    assert len(psutil.Process(gateway.pid).children()) == 1
    assert "slow" in await tool_names(gateway)


async def test_a_lazy_server_that_fails_at_its_first_call_says_so(gateway: RunningGateway) -> None:
    gateway.configure({"bad": {"transport": bad("exits"), "start": "lazy", "remembered": {"tools": [tool("t")]}}})
    async with gateway.client("legacy") as client:
        with pytest.raises(MCPError, match="server 'bad' exited with code 3 before it answered initialize"):
            await client.call_tool("t", {})
    assert await tool_names(gateway) == []


async def test_a_lazy_server_nobody_remembers_starts_at_once(gateway: RunningGateway) -> None:
    assert gateway.configure({"echo": {"transport": echo(), "start": "lazy"}})["echo"]["state"] == "ready"


async def test_a_lazy_server_starts_when_it_is_configured_to_be_eager(gateway: RunningGateway) -> None:
    entry = {"transport": echo(), "start": "lazy", "remembered": {"tools": [tool("echo")]}}
    gateway.configure({"echo": entry})
    assert gateway.configure({"echo": {**entry, "start": "eager"}})["echo"]["state"] == "ready"


async def test_a_subscription_starts_a_lazy_server(gateway: RunningGateway) -> None:
    remembered = {
        "resources": [{"uri": "memo:x", "name": "x"}],
        "capabilities": {"resources": {"subscribe": True}},
    }
    resources = {"resources": [{"uri": "memo:x", "name": "x"}], "capabilities": {"resources": {"subscribe": True}}}
    gateway.configure({"s": {"transport": scripted(**resources), "start": "lazy", "remembered": remembered}})
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert messages(await session.post("resources/subscribe", {"uri": "memo:x"}))[-1]["result"] == {}
        assert (await until_settled(gateway))["s"]["state"] == "ready"
        transport = scripted(**resources, label="another")
        entry = {"transport": transport, "start": "lazy", "remembered": remembered}
        assert gateway.configure({"s": entry})["s"]["state"] == "ready"
        gateway.configure({})
        assert gateway.configure({"s": entry})["s"]["state"] == "idle"


async def test_what_is_remembered_or_filtered_can_change_without_a_restart(gateway: RunningGateway) -> None:
    gateway.configure({"echo": echo()})
    before = psutil.Process(gateway.pid).children()
    changed = {"transport": echo(), "remembered": {"tools": [tool("old")]}, "tools": {"allow": ["add"]}}
    gateway.configure({"echo": changed})
    assert psutil.Process(gateway.pid).children() == before
    assert await tool_names(gateway) == ["add"]


async def test_many_remembered_tools_are_no_obstacle(gateway: RunningGateway) -> None:
    remembered = {"tools": [tool(f"t{number}", description="x" * 1000) for number in range(6000)]}
    entry = {"transport": stdio([sys.executable, "-c", "input()"]), "remembered": remembered, "start": "lazy"}
    assert gateway.configure({"s": entry})["s"]["tools"] == 6000
