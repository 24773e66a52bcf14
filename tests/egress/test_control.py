"""The egress proxy as a program: told over its standard input, and remembering across a restart."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.settings import ROOT
from tests.ports import free_port
from tests.waiting import BOUND_S

_US = "127.0.0.1"


@asynccontextmanager
async def running(kept_in: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-IB", str(ROOT / "sandbox_images" / "egress"), "--address", _US, "--kept-in", str(kept_in)),
        *("--http-port", str(port), "--tls-port", str(free_port())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BOUND_S):
            yield program
            program.terminate()
            assert await program.wait() == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


async def tell(program: asyncio.subprocess.Process, line: str) -> str:
    assert program.stdin
    assert program.stdout
    program.stdin.write(f"{line}\n".encode())
    return (await program.stdout.readline()).decode().strip()


async def refusal(port: int, host: str) -> bytes:
    reader, writer = await asyncio.open_connection(_US, port)
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_what_it_is_told_holds_when_it_says_so_and_after_a_restart(tmp_path: Path) -> None:
    port, kept_in = free_port(), tmp_path / "kept.json"
    async with running(kept_in, port) as program:
        assert await tell(program, f"7 {json.dumps({_US: ['a.example'], '192.0.2.1': None})}") == "7 ok"
        assert b"403" in await refusal(port, "b.example")
    async with running(kept_in, port) as program:
        assert await tell(program, "8 {}") == "8 ok"
        assert b"403" in await refusal(port, "b.example")
    assert json.loads(kept_in.read_text()) == {_US: ["a.example"]}


async def test_a_line_that_cannot_be_read_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "kept.json", free_port()) as program:
        assert (await tell(program, "1 {")).startswith("1 Expecting")
        assert await tell(program, "2 {}") == "2 ok"
