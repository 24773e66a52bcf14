"""What the proxy is told: lines on its standard input, kept in a file so that a restart forgets nothing.

A line is `<number> {"<sandbox's address>": ["<host>", …] | null}` and is answered with `<number> ok` once it holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from sandgate_egress.proxy import Proxy

_LONGEST_LINE = 16 * 1024 * 1024


async def obey(proxy: Proxy, kept_in: Path) -> None:
    """Carries out line after line; never returns before the input ends."""
    lines = asyncio.StreamReader(limit=_LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        number, _, text = line.decode().partition(" ")
        try:
            proxy.allow(json.loads(text))
            _keep(proxy, kept_in)
            answer = "ok"
        except (ValueError, OSError) as error:
            answer = str(error).replace("\n", " ")
        sys.stdout.write(f"{number} {answer}\n")
        sys.stdout.flush()


def remember(proxy: Proxy, kept_in: Path) -> None:
    """Take up what an earlier run was told. Without it every sandbox reaches nothing until it is told again."""
    if kept_in.exists():
        proxy.allow(json.loads(kept_in.read_text()))


def _keep(proxy: Proxy, file: Path) -> None:
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(proxy.allowed()))
    os.replace(unfinished, file)
