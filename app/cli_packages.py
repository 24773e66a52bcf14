"""`sandgate catalog install`, `lock` and `verify`: the packages that the catalog's servers come in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from app.catalog import Catalog, OptionError, ServerDefinition
from app.catalog.merging import Entry
from app.catalog.rehearsals import rehearsals_of
from app.cli_catalog import catalog, load_catalog
from app.database import Database
from app.engines.interface import Engine
from app.engines.jobs import Report
from app.errors import NotFound, SandgateError
from app.home import trials_locked
from app.ids_and_time import utc_now
from app.job_display import JobDisplay
from app.main import make_blueprint, make_engine, make_packages, sandbox_images
from app.packages import PackageLocks, PackageStore
from app.sandboxes.pod_clients import AgentClient, GatewayClient, make_http_client
from app.sandboxes.rehearsed_lists import RehearsedLists
from app.settings import ROOT, Settings, read_settings
from app.terminal import console, opened_database, out
from app.verification import Results, Verification, Verifier, make_page
from app.verification.observed_hosts import ManifestEditError, sort_hosts, with_allowed_hosts

__all__ = ["catalog"]

FIRST_SERVERS = ("time", "fetch", "git")
"""The MCP servers that the first lines to paste name."""
_INSTALLED_AT_ONCE = 3
_TRIED_AT_ONCE = 2

Keys = Annotated[list[str] | None, typer.Argument(help="Keys, aliases or catalog names.", show_default=False)]
AtOnce = Annotated[int, typer.Option("--jobs", min=1, max=16, help="How many at the same time.")]


@dataclass(frozen=True, slots=True)
class _Tools:
    engine: Engine
    packages: PackageStore


@catalog.command("install")
def install(
    keys: Keys = None,
    every: Annotated[bool, typer.Option("--all", help="Every package server of the catalog.")] = False,
    verified: Annotated[
        bool, typer.Option("--verified", help="Every package server that was seen to work; see docs/catalog.md.")
    ] = False,
    jobs: AtOnce = _INSTALLED_AT_ONCE,
    rehearse: Annotated[
        bool, typer.Option(help="Also start each once, so that sandboxes list its tools before they have started it.")
    ] = True,
) -> None:
    """Install the packages of servers and see what they list, so that the first sandbox with them need not wait."""
    settings = read_settings()

    async def run() -> list[str]:
        async with opened_database(settings) as database:
            loaded = await load_catalog(database)
            wanted = _package_servers(loaded, keys, every=every or verified)
            if verified and not every:
                wanted = [entry for entry in wanted if entry.definition.verified]
            failures = await _install_all(settings, wanted, at_once=jobs)
            if rehearse:
                await _rehearse_all(settings, database, loaded, wanted, at_once=min(jobs, _TRIED_AT_ONCE))
            return failures

    _exit_with(asyncio.run(run()))


def install_first_servers(settings: Settings) -> None:
    """Install what the lines that a start prints ask for. What fails is told, and tried again at its first use."""

    async def run() -> list[str]:
        async with opened_database(settings) as database:
            loaded = await load_catalog(database)
            wanted = _package_servers(loaded, FIRST_SERVERS, every=False)
            failures = await _install_all(settings, wanted, at_once=_INSTALLED_AT_ONCE)
            await _rehearse_all(settings, database, loaded, wanted, at_once=_TRIED_AT_ONCE)
            return failures

    for failure in asyncio.run(run()):
        console.print(f"[yellow]{escape(failure)}[/]")


async def _install_all(settings: Settings, wanted: Sequence[Entry], *, at_once: int) -> list[str]:
    async with _tools(settings) as tools:

        async def one(definition: ServerDefinition, report: Report) -> str:
            assert definition.package is not None
            if await tools.packages.is_installed(definition.package):
                return "is installed"
            await tools.packages.ensure(definition.key, definition.package, report)
            return "installed"

        return await _each([entry.definition for entry in wanted], one, at_once=at_once)


async def _rehearse_all(
    settings: Settings, database: Database, loaded: Catalog, wanted: Iterable[Entry], *, at_once: int
) -> None:
    """See what those list of which it is not known. What fails is said: a sandbox may have better credentials."""
    rehearsed = RehearsedLists(database, now=utc_now)
    unknown = [entry.definition for entry in wanted if not await _is_rehearsed(entry.definition, rehearsed)]
    if not unknown:
        return
    console.print("Looking what they list, with made-up credentials and without internet …")
    try:
        async with _verifier(settings, loaded) as verifier:

            async def one(definition: ServerDefinition, report: Report) -> str:
                trial = await verifier.verify(definition, report)
                await rehearsed.keep(definition.name, trial.rehearsed)
                if trial.verification.state == "verified":
                    return f"lists {trial.verification.tools} tools"
                return f"[yellow]is listed once a sandbox has started it:[/] {_reason(trial.verification)}"

            failures = await _each(unknown, one, at_once=at_once)
    except SandgateError as error:
        failures = [str(error)]
    for failure in failures:
        console.print(f"[yellow]{escape(failure)}[/]")


async def _is_rehearsed(definition: ServerDefinition, rehearsed: RehearsedLists) -> bool:
    try:
        return await rehearsed.has(rehearsals_of(definition))
    except OptionError:
        return False  # trying it tells why


@catalog.command("lock")
def lock(keys: Keys = None) -> None:
    """Resolve the dependencies of servers anew and write down what came out, beside the manifest that names it.

    For shipped servers that is in this checkout, for your own in SANDGATE_HOME.
    """
    settings = read_settings()

    async def run() -> list[str]:
        async with opened_database(settings) as database:
            wanted = _package_servers(await load_catalog(database), keys, every=False)
        async with _tools(settings) as tools:
            origins = {entry.definition.name: entry for entry in wanted}

            async def one(definition: ServerDefinition, report: Report) -> str:
                return await _lock(tools.packages, origins[definition.name], report)

            return await _each([entry.definition for entry in wanted], one, at_once=_INSTALLED_AT_ONCE)

    _exit_with(asyncio.run(run()))


@catalog.command("verify")
def verify(
    keys: Keys = None,
    jobs: AtOnce = _TRIED_AT_ONCE,
    results_file: Annotated[
        Path | None, typer.Option("--results", help="Where results are kept; default is in SANDGATE_HOME.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a Markdown page of all results.")] = None,
    write_hosts: Annotated[
        bool, typer.Option("--write-hosts", help="Add hosts that they reached out for to `allowHosts` of manifests.")
    ] = False,
) -> None:
    """Start package servers in pods without internet, with made-up credentials, and note what they list and take.

    Without keys: those whose current version has no result yet, so that a run that was cut short goes on. What they
    list is known to all sandboxes from then on.
    """
    settings = read_settings()
    try:
        results = Results(results_file or settings.home / "catalog" / "verified.json")
    except (OSError, ValueError, TypeError) as error:
        raise SandgateError(f"The results cannot be read: {error}") from error

    async def run() -> tuple[Catalog, list[Entry]]:
        async with opened_database(settings) as database:
            loaded = await load_catalog(database)
            named = _package_servers(loaded, keys, every=not keys)
            wanted = [entry.definition for entry in named]
            if not keys:
                wanted = [definition for definition in wanted if results.of(definition) is None]
            rehearsed = RehearsedLists(database, now=utc_now)
            if wanted:
                async with _verifier(settings, loaded) as verifier:

                    async def one(definition: ServerDefinition, report: Report) -> str:
                        trial = await verifier.verify(definition, report)
                        results.put(definition, trial.verification)
                        await rehearsed.keep(definition.name, trial.rehearsed)
                        return _outcome(trial.verification)

                    for failure in await _each(wanted, one, at_once=jobs):
                        console.print(f"[red]{escape(failure)}[/]")
            return loaded, named

    loaded, named = asyncio.run(run())
    if write_hosts:
        for entry in named:
            _write_hosts(entry, results.of(entry.definition))
    if page is not None:
        page.write_text(make_page(loaded, results))
    found = [results.of(entry.definition) for entry in _package_servers(loaded, None, every=True)]
    verified = sum(result is not None and result.state == "verified" for result in found)
    out.print(f"{verified} of {len(found)} package servers are verified.")


@asynccontextmanager
async def _verifier(settings: Settings, loaded: Catalog) -> AsyncIterator[Verifier]:
    """Raises: HomeError if another process has one."""
    # An installation of its own: a server that runs would take these pods for leftovers of its own.
    with trials_locked(settings.home):
        async with _tools(settings, suffix="-verify") as tools, make_http_client() as http:
            yield Verifier(
                engine=tools.engine,
                agents=AgentClient(http),
                gateways=GatewayClient(http),
                http=http,
                packages=tools.packages,
                catalog=loaded,
                blueprint=make_blueprint(settings, sandbox_images(settings)),
                recorder=ROOT / "sandbox_images" / "recorder" / "record_egress.py",
            )


@asynccontextmanager
async def _tools(settings: Settings, *, suffix: str = "") -> AsyncIterator[_Tools]:
    """An engine with its networks and the packages on it. With a `suffix`, an installation that is removed again."""
    tags = sandbox_images(settings)
    engine = make_engine(settings, tags, suffix=suffix)
    try:
        await engine.prepare()
        yield _Tools(engine, make_packages(settings, engine, tags))
    finally:
        if suffix:
            await engine.remove_installation()
        await engine.aclose()


def _package_servers(loaded: Catalog, keys: Sequence[str] | None, *, every: bool) -> list[Entry]:
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


async def _each(
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


async def _lock(packages: PackageStore, entry: Entry, report: Report) -> str:
    definition, file = entry.definition, entry.origin
    assert definition.package is not None
    if not isinstance(file, Path):
        raise SandgateError(
            f"MCP server {definition.key!r} was imported from {file}, so there is no manifest to change."
        )
    unlocked = definition.package.model_copy(update={"lock": None})
    await packages.ensure(definition.key, unlocked, report)
    locks = PackageLocks([file.parent.parent / "locks"])
    digest = locks.write(unlocked, await packages.lock_of(unlocked))
    if digest == definition.package.lock:
        return "as it was"
    text = file.read_text()
    line = f'  lock: "{digest}"'
    changed = re.sub(r"^  lock: .*$", line, text, flags=re.MULTILINE)
    if changed == text:
        changed = re.sub(r"^(  version: .*)$", rf"\1\n{line}", text, flags=re.MULTILINE)
    if changed == text:
        return f"[yellow]write into its package:[/] {line.strip()}"
    file.write_text(changed)
    return "locked"


def _outcome(verification: Verification) -> str:
    if verification.state == "verified":
        return f"[green]verified[/] {verification.tools} tools, {verification.start_s} s"
    return f"[yellow]{verification.state}[/] {_reason(verification)}"


def _write_hosts(entry: Entry, verification: Verification | None) -> None:
    observed = sort_hosts(entry.definition, verification.hosts if verification else ())
    key = f"[bold]{entry.definition.key}[/]"
    if observed.telemetry:
        console.print(f"{key} not added, as they hear how it is used: {', '.join(observed.telemetry)}", soft_wrap=True)
    if not observed.new:
        return
    if not isinstance(entry.origin, Path):
        console.print(f"{key} was imported, so there is no manifest to add {', '.join(observed.new)} to")
        return
    try:
        text = with_allowed_hosts(entry.origin.read_text(), (*entry.definition.allow_hosts, *observed.new))
    except ManifestEditError as error:
        console.print(f"{key} {escape(str(error))}", soft_wrap=True)
        return
    entry.origin.write_text(text)
    console.print(f"{key} `allowHosts` gains {', '.join(observed.new)}", soft_wrap=True)


def _reason(verification: Verification) -> str:
    lines = (verification.message or "").splitlines()
    return escape(lines[0] if lines else "")


def _exit_with(failures: Sequence[str]) -> None:
    for failure in failures:
        console.print(f"[red]{escape(failure)}[/]")
    if failures:
        raise typer.Exit(1)
