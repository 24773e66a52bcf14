"""The stdio door, byte by byte and with a real MCP server behind it."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.agent.running_agent import STDIO_TOKEN, USER_UID, RunningAgent
from tests.ports import free_port
from tests.waiting import BOUND_S, until

Frame = tuple[int, bytes]

STDOUT, STDERR, EXIT = 1, 2, 3

SERVER = Path(__file__).with_name("echo_mcp_server.py")


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self) -> Frame:
        async with asyncio.timeout(60):
            head = await self.reader.readexactly(5)
            return head[0], await self.reader.readexactly(int.from_bytes(head[1:], "big"))

    async def rest(self) -> tuple[bytes, bytes, Any]:
        """Everything until the connection is closed: stdout, stderr and the content of the exit frame."""
        output = {STDOUT: b"", STDERR: b""}
        while True:
            kind, data = await self.frame()
            if kind == EXIT:
                async with asyncio.timeout(30):
                    assert await self.reader.read() == b"", "the exit frame is the last one"
                return output[STDOUT], output[STDERR], json.loads(data)
            output[kind] += data


@asynccontextmanager
async def door(agent: RunningAgent, *command: str, **fields: Any) -> AsyncIterator[Connection]:
    reader, writer = await agent.open_door()
    first_line = {"token": STDIO_TOKEN, "server": "test", "command": command, **fields}
    writer.write(json.dumps(first_line).encode() + b"\n")
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_what_is_sent_is_stdin_and_what_comes_back_is_framed(agent: RunningAgent) -> None:
    async with door(agent, "sh", "-c", "read line; echo got $line; echo problem >&2; exit 7") as connection:
        await connection.send(b"hello\n")

        assert await connection.rest() == (b"got hello\n", b"problem\n", {"exitCode": 7})


async def test_stdin_sent_together_with_the_first_line_is_not_lost(agent: RunningAgent) -> None:
    reader, writer = await agent.open_door()
    writer.write(json.dumps({"token": STDIO_TOKEN, "server": "cat", "command": ["cat"]}).encode() + b"\nat once")
    writer.write_eof()

    assert await Connection(reader, writer).rest() == (b"at once", b"", {"exitCode": 0})
    writer.close()


async def test_the_run_has_the_user_the_directory_and_the_environment_asked_for(agent: RunningAgent) -> None:
    script = "id -un; pwd; echo $OWN $OF_THE_SANDBOX"
    async with door(agent, "sh", "-c", script, env={"OWN": "1"}, cwd="/usr", user="other") as connection:
        stdout, _, _ = await connection.rest()
    assert stdout == b"other\n/usr\n1 yes\n"

    async with door(agent, "sh", "-c", script, user=None, cwd=None) as connection:
        stdout, _, _ = await connection.rest()
    assert stdout.decode() == f"user\n{agent.home}\nyes\n"


@pytest.mark.parametrize("line", [b'{"token": "wrong", "server": "s", "command": ["id"]}\n', b"nonsense\n", b"[]\n"])
async def test_a_wrong_token_closes_the_connection_without_a_word(agent: RunningAgent, line: bytes) -> None:
    reader, writer = await agent.open_door()
    writer.write(line)

    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()


async def test_the_door_is_shut_before_the_agent_is_initialised(fresh_agent: RunningAgent) -> None:
    for token in ("", STDIO_TOKEN):
        async with door(fresh_agent, "id", token=token) as connection:
            async with asyncio.timeout(30):
                assert await connection.reader.read() == b""


async def test_what_cannot_be_started_says_why(agent: RunningAgent) -> None:
    async with door(agent, "no-such-program") as connection:
        _, _, end = await connection.rest()
    assert end == {"error": "could not start: No such file or directory: no-such-program"}

    async with door(agent, "id", user="nobody-knows") as connection:
        _, _, end = await connection.rest()
    assert end == {"error": "could not start: invalid username: 'nobody-knows'"}

    async with door(agent, "id", env={"A": 1}) as connection:
        _, _, end = await connection.rest()
    assert end == {"error": "could not start: env must map names to strings"}


async def test_output_of_a_run_that_has_ended_arrives_however_late_it_is_read(agent: RunningAgent) -> None:
    async with door(agent, "sh", "-c", "head -c 5000000 /dev/zero; exit 3") as connection:
        stdout, _, end = await connection.rest()

    assert (len(stdout), end) == (5_000_000, {"exitCode": 3})


async def test_the_end_of_stdin_ends_a_server_that_listens_to_it(agent: RunningAgent) -> None:
    async with door(agent, "sh", "-c", "cat; echo bye") as connection:
        await connection.send(b"x")
        connection.writer.write_eof()

        assert await connection.rest() == (b"xbye\n", b"", {"exitCode": 0})


async def test_a_server_that_ignores_the_end_of_stdin_is_terminated(agent: RunningAgent) -> None:
    async with door(agent, "sleep", "1000") as connection:
        connection.writer.write_eof()

        assert await connection.rest() == (b"", b"", {"signal": 15})


async def test_a_server_that_ignores_that_too_is_killed(agent: RunningAgent) -> None:
    async with door(agent, "bash", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as connection:
        assert await connection.frame() == (STDOUT, b"ready\n")
        connection.writer.write_eof()

        assert await connection.rest() == (b"", b"", {"signal": 9})


UNREAD = b"x" * 256 * 1024
"""More than a pipe holds."""


async def test_a_server_that_does_not_read_is_terminated_too_when_its_stdin_ends(agent: RunningAgent) -> None:
    async with door(agent, "sleep", "1000") as connection:
        await connection.send(UNREAD)
        connection.writer.write_eof()

        assert await connection.rest() == (b"", b"", {"signal": 15})


async def test_nothing_is_left_of_a_server_that_does_not_read_when_the_gateway_hangs_up(agent: RunningAgent) -> None:
    async with door(agent, "bash", "-c", "echo $$; exec sleep 1000") as connection:
        _, pid = await connection.frame()
        for _ in range(200):
            await connection.send(b"one of many small messages\n")
        await connection.send(UNREAD)

    await _gone(int(pid))


async def test_nothing_is_left_of_it_when_the_connection_is_lost_with_more_than_the_kernel_holds(
    agent: RunningAgent,
) -> None:
    async with door(agent, "bash", "-c", "echo $$; exec sleep 1000") as connection:
        _, pid = await connection.frame()
        connection.writer.write(UNREAD * 128)
        await until(lambda: connection.writer.transport.get_write_buffer_size() < len(UNREAD) * 127)  # some has left
        reset = struct.pack("ii", 1, 0)  # struct linger
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.writer.transport.abort()

    await _gone(int(pid))


async def test_nothing_of_a_run_is_left_when_the_gateway_hangs_up(agent: RunningAgent) -> None:
    async with door(agent, "bash", "-c", "sleep 1000 & echo $!; wait") as connection:
        _, pid = await connection.frame()

    await _gone(int(pid))


async def test_what_a_server_leaves_behind_does_not_outlive_it(agent: RunningAgent) -> None:
    async with door(agent, "bash", "-c", "sleep 1000 & echo $!") as connection:
        stdout, _, end = await connection.rest()

    assert end == {"exitCode": 0}
    await _gone(int(stdout))


async def test_a_real_mcp_server_answers_through_the_door(agent: RunningAgent) -> None:
    async with door(agent, sys.executable, str(SERVER), user="root", cwd="/usr") as connection:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        await connection.send(_line(id=1, method="initialize", params=hello))
        assert (await _answer(connection))["result"]["serverInfo"]["name"] == "echo"
        await connection.send(_line(method="notifications/initialized"))
        call = {"name": "where", "arguments": {}}
        await connection.send(_line(id=2, method="tools/call", params=call))
        content = (await _answer(connection))["result"]["content"]
        connection.writer.write_eof()
        _, _, end = await connection.rest()

    assert (content, end) == ([{"type": "text", "text": "/usr"}], {"exitCode": 0})


@pytest.fixture
def repositories(tmp_path: Path) -> Iterator[str]:
    """The address of a git daemon that serves one repository, `tool`, whose server prints its directory."""
    work, base = tmp_path / "work", tmp_path / "served"
    work.mkdir()
    base.mkdir()
    (work / "server.sh").write_text("#!/bin/sh\npwd; cat installed\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (
        ["git", "init", "-q", str(work)],
        ["git", "-C", str(work), "add", "."],
        ["git", "-C", str(work), *identity, "commit", "-q", "-m", "one"],
        ["git", "clone", "-q", "--bare", str(work), str(base / "tool")],
    ):
        subprocess.run(command, check=True, timeout=60)
    port = free_port()
    daemon = subprocess.Popen(
        ["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", f"--base-path={base}", str(base)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_port(port)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait(timeout=BOUND_S)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=BOUND_S).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


async def _run_custom(agent: RunningAgent, name: str, address: str, install: str | None) -> tuple[bytes, bytes, Any]:
    fields = {"server": name, "repository": address, "install": install}
    async with door(agent, "sh", "./server.sh", **fields) as connection:
        return await connection.rest()


async def test_a_custom_server_is_cloned_and_installed_once(agent: RunningAgent, repositories: str) -> None:
    name, address = "github/someone/tool", f"{repositories}/tool"
    install = "echo installing; echo once >> installed"

    first = await _run_custom(agent, name, address, install)
    second = await _run_custom(agent, name, address, install)

    directory = f"{agent.home}/.mcp/github-someone-tool"
    expected = f"{directory}\nonce\n".encode()
    assert (first[0], first[2]) == (expected, {"exitCode": 0})
    assert b"Cloning into" in first[1]
    assert first[1].endswith(b"installing\n")
    assert second == (expected, b"", {"exitCode": 0})
    assert os.stat(directory).st_uid == USER_UID


async def test_connections_for_one_server_do_not_install_at_the_same_time(
    agent: RunningAgent, repositories: str
) -> None:
    install = "sleep 0.3; echo once >> installed"
    async with asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(_run_custom(agent, "github/some/together", f"{repositories}/tool", install))
            for _ in range(3)
        ]

    assert [run.result()[0].splitlines()[1:] for run in runs] == [[b"once"]] * 3


async def test_a_failed_install_is_in_the_exit_frame_and_is_tried_again(agent: RunningAgent, repositories: str) -> None:
    name, address = "github/some/broken", f"{repositories}/tool"
    install = "echo no compiler here >&2; exit 9"

    for _ in range(2):
        stdout, stderr, end = await _run_custom(agent, name, address, install)

        assert (stdout, end) == (b"", {"error": "could not start: the install command exited with code 9"})
        assert stderr.endswith(b"no compiler here\n")


async def test_a_repository_that_cannot_be_cloned_is_reported(agent: RunningAgent, repositories: str) -> None:
    address = f"{repositories}/missing"

    _, stderr, end = await _run_custom(agent, "github/some/missing", address, None)

    assert end == {"error": f"could not start: cloning {address} exited with code 128"}
    assert stderr != b""


@pytest.mark.parametrize("address", ["ext::sh -c id", "file:///etc", "--upload-pack=id", "ssh://host/x"])
async def test_only_addresses_of_the_network_are_cloned(agent: RunningAgent, address: str) -> None:
    _, _, end = await _run_custom(agent, "github/some/address", address, None)

    assert end == {"error": "could not start: repository must be an https://, http:// or git:// address"}


async def test_an_install_ends_when_the_gateway_hangs_up_and_the_next_one_starts_anew(
    agent: RunningAgent, repositories: str
) -> None:
    fields = {"server": "github/some/slow", "repository": f"{repositories}/tool"}
    async with door(agent, "sh", "./server.sh", **fields, install="echo $$; sleep 1000") as connection:
        pid = b""
        while not pid.strip().isdigit():
            _, pid = await connection.frame()

    await _gone(int(pid))
    stdout, _, end = await _run_custom(agent, "github/some/slow", f"{repositories}/tool", "echo once >> installed")
    assert (stdout.splitlines()[1:], end) == ([b"once"], {"exitCode": 0})


def _line(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


async def _answer(connection: Connection) -> Any:
    """The next JSON-RPC message on stdout."""
    line = b""
    while not line.endswith(b"\n"):
        kind, data = await connection.frame()
        line += data if kind == STDOUT else b""
    return json.loads(line)


async def _gone(pid: int) -> None:
    """Return once the process has ended; a zombie has, and waits for the machine's init."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        async with asyncio.timeout(30):
            while process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - there is no event for another's child
                await asyncio.sleep(0.02)
