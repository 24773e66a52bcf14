"""Building templates in tests: request, send the steps, wait for the end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from app.engines.builds import BuildStep, OnOutput
from app.templates import TemplateService
from app.templates.models import Build, BuildStatus, LogLine
from app.templates.planning import BuildRequest, Step
from tests.waiting import BOUND_S


def run(command: str, user: str = "", *, force: bool = False) -> Step:
    return Step(kind="RUN", args=(command, user) if user else (command,), force=force)


def request(*steps: Step, **more: Any) -> BuildRequest:
    return BuildRequest(**{"from_image": "e2bdev/base", "steps": steps, **more})


async def begin(templates: TemplateService, team: str, name: str, plan: BuildRequest, **asked: Any) -> Build:
    _, build = await templates.request_build(team, name, **{"cpus": None, "memory_mib": None, **asked})
    await templates.start_build(team, build.template_id, build.id, plan)
    return build


async def finished(templates: TemplateService, team: str, build: Build) -> Build:
    async with asyncio.timeout(BOUND_S):
        while True:
            found, _ = await templates.build_status(team, build.template_id, build.id)
            if found.status in (BuildStatus.READY, BuildStatus.ERROR):
                return found
            await asyncio.sleep(0.005)


async def build(templates: TemplateService, team: str, name: str, plan: BuildRequest, **asked: Any) -> Build:
    """Build a template and return once that has ended, well or not."""
    return await finished(templates, team, await begin(templates, team, name, plan, **asked))


class HangingStep:
    """How a builder behaves whose step never ends."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def __call__(self, step: BuildStep, on_output: OnOutput) -> int:
        self.reached.set()
        await asyncio.Event().wait()
        return 0


async def log_of(templates: TemplateService, team: str, done: Build) -> list[LogLine]:
    """All of it, page by page as the SDKs do."""
    lines: list[LogLine] = []
    while page := (await templates.build_status(team, done.template_id, done.id, offset=len(lines)))[1]:
        lines += page
    return lines


def action(step: BuildStep) -> Any:
    """What the step's script is told to do; None for a script that is told nothing."""
    return next((orjson.loads(file.content) for file in step.files if file.path.endswith("/step.json")), None)


def archive(**files: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def in_chunks(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for begin_at in range(0, len(content), size):
        yield content[begin_at : begin_at + size]


def all_bytes_in(folder: Path) -> bytes:
    """Content of every file below it, one after the other."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
