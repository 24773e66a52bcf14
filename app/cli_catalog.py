"""`sandgate catalog`: which MCP servers can be named in `mcp`."""

from __future__ import annotations

import typer
from rich.table import Table

from app.catalog import describe
from app.main import make_catalog
from app.settings import read_settings
from app.terminal import out

catalog = typer.Typer(no_args_is_help=True, help="MCP servers that can be named in `mcp`.")


@catalog.command("list")
def list_catalog() -> None:
    """Show the MCP servers that can be named in `mcp`."""
    table = Table("key", "runs in", "required", "what it is", box=None)
    for item in map(describe, make_catalog(read_settings())):
        required = item["required"]
        needed = ", ".join(map(str, required)) if isinstance(required, list) else ""
        table.add_row(str(item["key"]), str(item["placement"]), needed, str(item["title"]))
    out.print(table)
