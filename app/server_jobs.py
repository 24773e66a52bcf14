"""What the commands for package servers share: the engine with its packages, the servers meant, and the work shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.catalog import Catalog, ServerDefinition
from app.catalog.merging import Entry
from app.engines.interface import Engine
from app.engines.jobs import Report
from app.errors import NotFound, SandgateError
from app.home import trials_locked
from app.job_display import JobDisplay
from app.main import make_engine, make_packages, sandbox_images
from app.packages import PackageStore
from app.settings import Settings
from app.terminal import console

_TRIALS = "-verify"
"""What the installation that servers are tried in is called, behind the name of the home's own."""


@dataclass(frozen=True, slots=True)
class Tools:
    engine: Engine
    packages: PackageStore


@asynccontextmanager
async def _tools(settings: Settings, *, suffix: str = "") -> AsyncIterator[Tools]:
    """An engine and the packages on it. A `suffix` to the name makes another installation."""
    tags = sandbox_images(settings)
    engine = make_engine(settings, tags, suffix=suffix)
    try:
        yield Tools(engine, make_packages(settings, engine, tags))
    finally:
        await engine.aclose()


@asynccontextmanager
async def opened_tools(settings: Settings) -> AsyncIterator[Tools]:
    """An engine with its networks, for jobs, and the packages on it. A server may be at work beside it."""
    async with _tools(settings) as tools:
        await tools.engine.prepare_networks()
        yield tools


@asynccontextmanager
async def opened_trials(settings: Settings) -> AsyncIterator[Tools]:
    """As `opened_tools`, in an installation of its own, of which nothing is left afterwards.

    A server that runs would take its pods for leftovers of its own. Raises: HomeError if another process has one.
    """
    with trials_locked(settings.home):
        async with _tools(settings, suffix=_TRIALS) as tools:
            await tools.engine.remove_installation()  # what a process that was killed left
            try:
                await tools.engine.prepare()
                yield tools
            finally:
                await tools.engine.remove_installation()


async def remove_trials(settings: Settings) -> tuple[str, ...]:
    """Take off the engine what a process left that was killed while it tried servers.

    Gives the names of what the engine would not let go. Safe to repeat. Raises: HomeError if some are tried now.
    """
    with trials_locked(settings.home):
        async with _tools(settings, suffix=_TRIALS) as tools:
            return await tools.engine.remove_installation()


def package_servers(loaded: Catalog, keys: Sequence[str] | None, *, every: bool) -> list[Entry]:
    """Raises: NotFound for a key that is unknown or of a server that comes in no package."""
    if every:
        return [entry for d in loaded if d.package is not None and (entry := loaded.entry(d.key)) is not None]
    if not keys:
        raise NotFound("Name at least one server. `sandgate catalog list` shows all.")
    found = []
    for key in keys:
        entry = loaded.entry(key)
        if entry is None:
            nearest = loaded.nearest(key)
            hint = f" Did you mean {nearest!r}?" if nearest else ""
            raise NotFound(f"There is no MCP server {key!r} in the catalog.{hint}")
        if entry.definition.package is None:
            raise NotFound(f"MCP server {key!r} comes in no package, so there is nothing to install.")
        found.append(entry)
    return found


async def each(
    definitions: Iterable[ServerDefinition],
    work: Callable[[ServerDefinition, Report], Awaitable[str]],
    *,
    at_once: int,
) -> list[str]:
    """Do `work` for all, some at a time, and show how far it is; gives what went wrong, a message a server."""
    turn = asyncio.Semaphore(at_once)
    failures: list[str] = []
    definitions = list(definitions)

    async def one(definition: ServerDefinition, display: JobDisplay) -> None:
        async with turn:
            job = display.begin(definition.key)
            try:
                job.end(await work(definition, job.report))
            except SandgateError as error:
                failures.append(str(error))
                job.end("[red]failed[/]")

    with JobDisplay(console, total=len(definitions)) as display:
        async with asyncio.TaskGroup() as group:
            for definition in definitions:
                group.create_task(one(definition, display), name=definition.key)
    return failures
