"""`sandgate catalog`: which MCP servers can be named in `mcp`, and the catalogs they come from.

The commands work on the database, so they need no running server; one that runs takes changes over within seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from app.catalog import Catalog, ServerDefinition, describe, describe_whole
from app.catalog.importing import CatalogImporter, Change, ImportReport
from app.catalog.sources import SourceStore
from app.database import Database
from app.errors import NotFound
from app.ids_and_time import utc_now
from app.main import make_catalog, make_vault
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.tool_search import ToolSearch
from app.settings import read_settings
from app.terminal import console, out, with_database

T = TypeVar("T")

_SHOWN_LINES = 50

catalog = typer.Typer(no_args_is_help=True, help="MCP servers that can be named in `mcp`.")

SourceName = Annotated[str, typer.Argument(help="From `sandgate catalog list-sources`.")]


@catalog.command("list")
def list_catalog() -> None:
    """Show the MCP servers that can be named in `mcp`."""
    _print_servers(with_database(load_catalog))


@catalog.command("search")
def search_catalog(
    words: Annotated[list[str], typer.Argument(help="Each also matches as the beginning of one.")],
) -> None:
    """Show the MCP servers that match, the best first."""

    async def search(database: Database) -> list[ServerDefinition]:
        loaded = await load_catalog(database)
        await ToolSearch(ToolMemory(database, now=utc_now), loaded).load()
        return loaded.search(" ".join(words))

    found = with_database(search)
    if not found:
        console.print("Nothing matches. Fewer or other words may; `sandgate catalog list` shows all.")
        raise typer.Exit(1)
    _print_servers(found[:_SHOWN_LINES])


@catalog.command("show")
def show_server(key: Annotated[str, typer.Argument(help="Key, alias or catalog name.")]) -> None:
    """Show everything the catalog knows of one server, as JSON."""
    loaded = with_database(load_catalog)
    entry = loaded.entry(key)
    if entry is None:
        nearest = ", ".join(loaded.nearest_few(key))
        raise NotFound(f"There is no MCP server {key} in the catalog. {f'Nearest: {nearest}.' if nearest else ''}")
    shown = describe_whole(entry.definition) | {"source": entry.source, "origin": str(entry.origin)}
    out.print_json(orjson.dumps(shown).decode())


@catalog.command("import")
def import_catalog(
    origin: Annotated[str, typer.Argument(help="A file, or an https URL (http on this machine).")],
    name: Annotated[str | None, typer.Option(help="What to call it; importing it again replaces it.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Let its servers replace shipped ones of the same name.")
    ] = False,
    digest: Annotated[str | None, typer.Option(help="sha256:… that the document must have; pins it.")] = None,
) -> None:
    """Take over a catalog: Docker's, the MCP registry's, an MCP client's configuration, LiteLLM's, or a manifest."""
    where = origin if "://" in origin else str(Path(origin).absolute())
    _print_report(
        _with_importer(
            lambda importer: importer.import_origin(
                where, name=name, overrides=override, digest=digest, by_operator=True
            )
        )
    )


@catalog.command("list-sources")
def list_sources() -> None:
    """Show the imported catalogs, in the order in which later ones win."""
    table = Table("name", "format", "digest", "imported", "origin", box=None)
    for source in _with_importer(lambda importer: importer.sources()):
        marks = "".join((" (pinned)" if source.pinned_digest else "", " (overrides)" if source.overrides else ""))
        when = f"{source.imported_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(source.name + marks, source.format, source.digest[:19], when, source.origin or "a request")
    out.print(table)


@catalog.command("refresh")
def refresh_source(name: SourceName) -> None:
    """Take over what a catalog's origin holds now."""
    _print_report(_with_importer(lambda importer: importer.refresh(name, by_operator=True)))


@catalog.command("diff")
def diff_source(name: SourceName) -> None:
    """Show what a refresh would change."""
    digest, change = _with_importer(lambda importer: importer.diff(name, by_operator=True))
    out.print(f"The origin has {digest}.", soft_wrap=True)
    _print_change(change)


@catalog.command("pin")
def pin_source(
    name: SourceName,
    digest: Annotated[str | None, typer.Option(help="sha256:…, by default the present one.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Let refreshes bring what the origin holds again.")] = False,
) -> None:
    """Let no refresh bring another document than this."""
    source = _with_importer(lambda importer: importer.unpin(name) if off else importer.pin(name, digest))
    out.print(
        f"{source.name} is pinned to {source.digest}." if source.pinned_digest else f"{source.name} is not pinned.",
        soft_wrap=True,
    )


@catalog.command("remove")
def remove_source(name: SourceName) -> None:
    """Take a catalog's servers away. Running sandboxes keep theirs."""
    _with_importer(lambda importer: importer.remove(name))
    out.print(f"{name} is removed.")


def _with_importer(work: Callable[[CatalogImporter], Awaitable[T]]) -> T:
    async def run(database: Database) -> T:
        settings = read_settings()
        importer = CatalogImporter(make_catalog(settings), SourceStore(database, make_vault(settings)), now=utc_now)
        await importer.reload()
        return await work(importer)

    return with_database(run)


async def load_catalog(database: Database) -> Catalog:
    """With everything that was imported."""
    settings = read_settings()
    loaded = make_catalog(settings)
    await CatalogImporter(loaded, SourceStore(database, make_vault(settings)), now=utc_now).reload()
    return loaded


def _print_servers(definitions: Iterable[ServerDefinition]) -> None:
    table = Table("key", "runs in", "required", "what it is", box=None)
    for item in map(describe, definitions):
        required = item["required"]
        needed = ", ".join(map(str, required)) if isinstance(required, list) else ""
        state = "" if item["state"] == "available" else " [yellow](not run)[/]"
        table.add_row(str(item["key"]), str(item["placement"]), needed, escape(str(item["title"])) + state)
    out.print(table)


def _print_report(report: ImportReport) -> None:
    file = report.source.origin or report.source.name
    for refusal in report.refused:
        _print_line("[red]not taken over[/]", file, str(refusal), refusal.remedy)
    for name, objections in report.not_run.items():
        for objection in objections:
            _print_line("[yellow]not run[/]", file, f"{name}: {objection.field}: {objection.reason}", objection.remedy)
    for item in report.shadowed:
        out.print(f"{item.name}: not used, as {item.by} defines it", markup=False, soft_wrap=True)
    for name, key in report.renamed.items():
        out.print(f"{name}: its key is {key}", markup=False, soft_wrap=True)
    available = report.servers - len(report.not_run)
    out.print(
        f"[bold]{report.source.name}[/] ({report.source.format}, {report.source.digest[:19]}…):"
        f" {report.servers} servers, {available} of them can be run, {len(report.not_run)} are refused when used;"
        f" {len({refusal.entry for refusal in report.refused})} were not taken over.",
        soft_wrap=True,
    )
    if report.change.removed or len(report.change.added) < report.servers:
        _print_change(report.change)


def _print_line(mark: str, file: str, what: str, remedy: str) -> None:
    out.print(f"{mark} {escape(file)}: {escape(what)}. {escape(remedy)}", soft_wrap=True)


def _print_change(change: Change) -> None:
    if not (change.added or change.removed or change.changed):
        out.print("No server changes.")
    lines = [
        *(f"+ {name}" for name in change.added),
        *(f"- {name}" for name in change.removed),
        *(f"~ {name}: {', '.join(fields)}" for name, fields in change.changed.items()),
    ]
    for line in lines[:_SHOWN_LINES]:
        out.print(line, markup=False, soft_wrap=True)
    if len(lines) > _SHOWN_LINES:
        out.print(f"and {len(lines) - _SHOWN_LINES} more")
