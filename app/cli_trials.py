"""`sandgate catalog verify`, and the trial of servers that `sandgate catalog install` adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from app.catalog import Catalog, OptionError, ServerDefinition
from app.catalog.merging import Entry
from app.catalog.rehearsals import rehearsals_of
from app.cli_catalog import catalog, load_catalog
from app.database import Database
from app.engines.jobs import Report
from app.errors import SandgateError
from app.ids_and_time import utc_now
from app.main import make_blueprint, opened_database, sandbox_images
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.sandboxes.pod_http import make_http_client
from app.sandboxes.rehearsed_lists import RehearsedLists
from app.server_jobs import each, opened_trials, package_servers
from app.settings import ROOT, Settings, read_settings
from app.terminal import console, out
from app.verification import Results, Verification, Verifier, make_page
from app.verification.observed_hosts import ManifestEditError, sort_hosts, with_allowed_hosts

TRIED_AT_ONCE = 2

Keys = Annotated[list[str] | None, typer.Argument(help="Keys, aliases or catalog names.", show_default=False)]
AtOnce = Annotated[int, typer.Option("--jobs", min=1, max=16, help="How many at the same time.")]


@catalog.command("verify")
def verify(
    keys: Keys = None,
    jobs: AtOnce = TRIED_AT_ONCE,
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
            named = package_servers(loaded, keys, every=not keys)
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

                    for failure in await each(wanted, one, at_once=jobs):
                        console.print(f"[red]{escape(failure)}[/]")
            return loaded, named

    loaded, named = asyncio.run(run())
    if write_hosts:
        for entry in named:
            _write_hosts(entry, results.of(entry.definition))
    if page is not None:
        page.write_text(make_page(loaded, results))
    found = [results.of(entry.definition) for entry in package_servers(loaded, None, every=True)]
    verified = sum(result is not None and result.state == "verified" for result in found)
    out.print(f"{verified} of {len(found)} package servers are verified.")


async def rehearse_all(
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

            failures = await each(unknown, one, at_once=at_once)
    except SandgateError as error:
        failures = [str(error)]
    for failure in failures:
        console.print(f"[yellow]{escape(failure)}[/]")


async def _is_rehearsed(definition: ServerDefinition, rehearsed: RehearsedLists) -> bool:
    try:
        return await rehearsed.has(rehearsals_of(definition))
    except OptionError:
        return False  # trying it tells why


@asynccontextmanager
async def _verifier(settings: Settings, loaded: Catalog) -> AsyncIterator[Verifier]:
    """Raises: HomeError if another process has one."""
    async with opened_trials(settings) as tools, make_http_client() as http:
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
