"""Servers that fail do so under their own name, and take nothing else down."""

import sys

import httpx
import psutil
import pytest
from mcp import MCPError

from tests.gateway.running_gateway import FIXTURES, RunningGateway, bad, echo, scripted, stdio
from tests.gateway.wire import LegacyWire, modern
from tests.waiting import BOUND_S, until


async def tool_names(gateway: RunningGateway) -> list[str]:
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        answer = await modern(http, gateway.url, "tools/list")
        return [tool["name"] for tool in answer.json()["result"]["tools"]]


async def test_a_server_that_exits_at_once_has_failed_with_its_last_words(gateway: RunningGateway) -> None:
    status = gateway.configure({"bad": bad("exits", {"ECHO_API_KEY": "hunter2-hunter2"}), "echo": echo()})
    assert status["bad"]["state"] == "failed"
    assert status["bad"]["message"] == "exited with code 3 before it answered initialize"
    assert status["bad"]["stderr"][-2:] == ["bad server: cannot start", "bad server: the API key *** was refused"]
    assert status["echo"]["state"] == "ready"
    assert "echo" in await tool_names(gateway)
    assert "hunter2" not in gateway.log


async def test_a_server_that_never_answers_has_failed_when_its_time_is_over(gateway: RunningGateway) -> None:
    status = gateway.configure({"silent": bad("silent")}, start_timeout_s=1)
    assert status["silent"]["state"] == "failed"
    assert status["silent"]["message"] == "did not answer initialize within 1 s"


async def test_a_program_that_does_not_exist_has_failed(gateway: RunningGateway) -> None:
    status = gateway.configure({"none": stdio(["/no/such/program"])})
    assert status["none"]["message"] == "could not be started: No such file or directory"


async def test_lines_that_are_not_json_rpc_do_no_harm(gateway: RunningGateway) -> None:
    assert gateway.configure({"garbage": bad("garbage")})["garbage"]["state"] == "ready"
    async with gateway.client("legacy") as client:
        assert (await client.call_tool("ping_pong", {})).content[0].text == "pong"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_server_that_dies_in_mid_call_fails_the_call_and_comes_back(gateway: RunningGateway, mode: str) -> None:
    gateway.configure({"echo": echo()})
    async with gateway.client(mode) as client:  # type: ignore[arg-type]
        with pytest.raises(MCPError, match="server 'echo' exited with code 5") as caught:
            await client.call_tool("exit", {"code": 5})
        assert caught.value.error.code == -32603
        assert caught.value.error.data == {"server": "echo"}
        assert (await client.call_tool("echo", {"text": "back"})).structured_content == {"result": "back"}
    status = gateway.status()["echo"]
    assert (status["state"], status["restarts"], status["message"]) == ("ready", 1, None)


async def test_the_tools_of_a_server_stay_listed_while_it_is_restarted(gateway: RunningGateway) -> None:
    gateway.configure({"echo": echo(), "scripted": scripted(tools=[{"name": "t", "inputSchema": {"type": "object"}}])})
    before = await tool_names(gateway)
    async with httpx.AsyncClient(timeout=20) as http:
        session = await LegacyWire(http, gateway.url).open()
        assert (await session.call("t", {"do": "exit"}))["error"]["data"] == {"server": "scripted"}
        assert await tool_names(gateway) == before
    await until(lambda: gateway.status()["scripted"]["state"] == "ready")


async def test_a_server_that_is_slow_to_list_does_not_empty_the_list(gateway: RunningGateway) -> None:
    slow = "import sys,json\n"
    slow += "for line in sys.stdin:\n m=json.loads(line)\n i=m.get('id')\n"
    slow += " r={'protocolVersion':'2025-11-25','capabilities':{'tools':{}},'serverInfo':{'name':'s','version':'1'}}\n"
    slow += " if m['method']=='initialize': print(json.dumps({'jsonrpc':'2.0','id':i,'result':r}),flush=True)\n"
    slow += " if m['method']=='server/discover':\n"
    slow += "  print(json.dumps({'jsonrpc':'2.0','id':i,'error':{'code':-32601,'message':'no'}}),flush=True)\n"
    gateway.put_config({"mute": stdio([sys.executable, "-c", slow]), "echo": echo()})
    await until(lambda: gateway.status()["echo"]["state"] == "ready")
    assert "echo" in await tool_names(gateway)
    await until(lambda: gateway.status()["mute"]["state"] == "ready")
    assert gateway.status()["mute"]["message"] == "did not list its tools within 5 s"


async def test_a_server_that_exits_when_it_is_probed_is_started_again_without_probe(gateway: RunningGateway) -> None:
    picky = (
        "import sys\nline = sys.stdin.readline()\nif 'initialize' not in line: sys.exit(9)\n"
        "sys.argv = ['x', '{}']\nimport io\n"
        f"source = open({str(FIXTURES.parent / 'gateway' / 'scripted_server.py')!r}).read()\n"
        "first = [line]\n"
        "class Both:\n def __iter__(self):\n  yield line\n  yield from sys.__stdin__\n"
        "sys.stdin = Both()\nexec(source)\n"
    )
    assert gateway.configure({"picky": stdio([sys.executable, "-c", picky])})["picky"]["state"] == "ready"


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended in between
        return False


async def test_nothing_of_a_server_is_left_when_it_is_taken_away(gateway: RunningGateway) -> None:
    shell = f"sleep 1000 & exec {sys.executable} {FIXTURES / 'echo_server.py'} --stdio"
    gateway.configure({"echo": stdio(["/bin/sh", "-c", shell])})
    family = psutil.Process(gateway.pid).children(recursive=True)
    assert len(family) == 2
    gateway.configure({})
    await until(lambda: not any(is_alive(child) for child in family))


async def test_a_server_that_ignores_everything_is_killed(gateway: RunningGateway) -> None:
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)"
    gateway.put_config({"stubborn": stdio([sys.executable, "-c", stubborn])})
    await until(lambda: bool(psutil.Process(gateway.pid).children()))
    (child,) = psutil.Process(gateway.pid).children()
    gateway.put_config({})
    assert not is_alive(child)


async def test_a_server_sees_its_own_environment_and_nothing_of_the_gateways(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDGATE_TEST_MARK", "1")
    show = "import os, sys; sys.stderr.write(' '.join(sorted(os.environ)) + '\\n')"
    status = gateway.configure({"env": stdio([sys.executable, "-c", show], {"MINE": "1"})})
    names = status["env"]["stderr"][-1].split()
    assert "MINE" in names
    assert set(names) <= {
        "CURL_CA_BUNDLE",
        "HOME",
        "LANG",
        "LC_CTYPE",
        "MINE",
        "NODE_EXTRA_CA_CERTS",
        "PATH",
        "PIP_CERT",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TZ",
        "UV_NATIVE_TLS",
        "UV_SYSTEM_CERTS",
    }
