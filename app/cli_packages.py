"""`sandgate catalog install`, `lock` and `prune`: the packages that the catalog's servers come in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from app.catalog import Catalog, ServerDefinition
from app.catalog.merging import Entry
from app.cli_catalog import catalog, load_catalog
from app.cli_trials import TRIED_AT_ONCE, AtOnce, Keys, rehearse_all
from app.engines.jobs import Report
from app.errors import SandgateError
from app.home import home_locked
from app.main import make_vault, opened_database
from app.packages import PackageLocks, PackageStore
from app.sandboxes.store import Store
from app.server_jobs import each, opened_tools, package_servers, remove_trials
from app.settings import Settings, read_settings
from app.terminal import console, out

__all__ = ["catalog"]

FIRST_SERVERS = ("time", "fetch", "git")
"""The MCP servers that the first lines to paste name."""
_INSTALLED_AT_ONCE = 3


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

    def choose(loaded: Catalog) -> list[Entry]:
        wanted = package_servers(loaded, keys, every=every or verified)
        return wanted if every or not verified else [entry for entry in wanted if entry.definition.verified]

    _exit_with(asyncio.run(_install(read_settings(), choose, at_once=jobs, rehearse=rehearse)))


def install_first_servers(settings: Settings) -> None:
    """Install what the lines that a start prints ask for. What fails is told, and tried again at its first use."""

    def choose(loaded: Catalog) -> list[Entry]:
        return package_servers(loaded, FIRST_SERVERS, every=False)

    for failure in asyncio.run(_install(settings, choose, at_once=_INSTALLED_AT_ONCE, rehearse=True)):
        console.print(f"[yellow]{escape(failure)}[/]")


async def _install(
    settings: Settings, choose: Callable[[Catalog], list[Entry]], *, at_once: int, rehearse: bool
) -> list[str]:
    """What failed, a line each."""
    async with opened_database(settings) as database:
        loaded = await load_catalog(database)
        wanted = choose(loaded)
        failures = await _install_all(settings, wanted, at_once=at_once)
        if rehearse:
            await rehearse_all(settings, database, loaded, wanted, at_once=min(at_once, TRIED_AT_ONCE))
        return failures


async def _install_all(settings: Settings, wanted: Sequence[Entry], *, at_once: int) -> list[str]:
    async with opened_tools(settings) as tools:

        async def one(definition: ServerDefinition, report: Report) -> str:
            assert definition.package is not None
            if await tools.packages.is_installed(definition.package):
                return "is installed"
            await tools.packages.ensure(definition.key, definition.package, report)
            return "installed"

        return await each([entry.definition for entry in wanted], one, at_once=at_once)


@catalog.command("lock")
def lock(keys: Keys = None) -> None:
    """Write down what the dependencies of servers are resolved to, beside the manifest that names it.

    Of a server that has a lock they are resolved anew; of one that has none, what is installed counts, and is installed
    if it is not. For shipped servers that is in this checkout, for your own in SANDGATE_HOME.
    """
    settings = read_settings()

    async def run() -> list[str]:
        async with opened_database(settings) as database:
            wanted = package_servers(await load_catalog(database), keys, every=False)
        async with opened_tools(settings) as tools:
            origins = {entry.definition.name: entry for entry in wanted}

            async def one(definition: ServerDefinition, report: Report) -> str:
                return await _lock(tools.packages, origins[definition.name], report)

            return await each([entry.definition for entry in wanted], one, at_once=_INSTALLED_AT_ONCE)

    _exit_with(asyncio.run(run()))


@catalog.command("prune")
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
) -> None:
    """Remove installed packages that no server of the catalog and no sandbox has any more.

    Sandgate must not be running. Other homes on the same engine install anew what they alone had; nothing is removed
    while any of them has a sandbox.
    """
    settings = read_settings()

    async def run() -> None:
        if not dry_run:
            await remove_trials(settings)  # they would count as those of another home
        async with opened_database(settings) as database, opened_tools(settings) as tools:
            used = {d.package.digest for d in await load_catalog(database) if d.package is not None}
            for sandbox in await Store(database, make_vault(settings)).alive():
                if sandbox.secrets.gateway is not None:
                    used |= {package.digest for package in sandbox.secrets.gateway.packages.values()}
            installed = await tools.packages.installed()
            unused = {digest: package for digest, package in installed.items() if digest not in used}
            for package in sorted(map(str, unused.values())):
                out.print(package, highlight=False)
            freed = await tools.packages.remove(unused, dry_run=dry_run)
            done = "would be removed, which frees" if dry_run else "are removed, which frees"
            out.print(f"{len(unused)} of {len(installed)} packages {done} {freed / 2**20:,.0f} MiB.")

    with home_locked(settings.home):
        asyncio.run(run())


async def _lock(packages: PackageStore, entry: Entry, report: Report) -> str:
    definition, file = entry.definition, entry.origin
    assert definition.package is not None
    if not isinstance(file, Path):
        raise SandgateError(
            f"MCP server {definition.key!r} was imported from {file}, so there is no manifest to change."
        )
    if definition.package.lock is None:
        await packages.ensure(definition.key, definition.package, report)
        files = await packages.lock_of(definition.package)
    else:
        files = await packages.resolve(definition.key, definition.package, report)
    digest = PackageLocks([file.parent.parent / "locks"]).write(definition.package, files)
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


def _exit_with(failures: Sequence[str]) -> None:
    for failure in failures:
        console.print(f"[red]{escape(failure)}[/]")
    if failures:
        raise typer.Exit(1)
