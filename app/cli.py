"""`sandgate`: start the server, look at it, and manage keys, catalog and images."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import docker
import typer
import uvicorn
from docker.errors import DockerException
from rich.table import Table

from app.accounts import Accounts
from app.build_display import BuildDisplay
from app.cli_packages import catalog, install_first_servers
from app.database import Database
from app.doctor import diagnose
from app.edge.edge import Edge
from app.edge.server import STREAMS_END_S, server_config
from app.engines.images import ImageBuilder, ImageTags
from app.engines.installation import install_engine
from app.errors import EngineError, SandgateError
from app.home import home_locked
from app.logs import configure_logging
from app.main import (
    check_start,
    make_app,
    make_engine,
    make_vault,
    public_url,
    sandbox_images,
)
from app.secrets.at_rest import renew_stored_secrets
from app.settings import ROOT, Settings, read_settings
from app.terminal import console, out, with_database
from app.volumes.volumes import forget_all_volumes

if TYPE_CHECKING:
    from app.edge.workers import EdgeWorkers

_BACKLOG = 2048
"""Connections that may wait to be accepted; uvicorn's own."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="A sandbox and every MCP server behind one URL.")
keys = typer.Typer(no_args_is_help=True, help="API keys, and the key that encrypts what is stored.")
images = typer.Typer(no_args_is_help=True, help="The images sandboxes are made of.")
app.add_typer(keys, name="keys")
app.add_typer(catalog, name="catalog")
app.add_typer(images, name="images")


def main() -> None:
    with _errors_for_people():
        app()


@app.command()
def serve(
    setup: Annotated[
        bool, typer.Option("--setup", help="First make sure that a Docker Engine runs and the images are there.")
    ] = False,
) -> None:
    """Serve the API and sandbox traffic."""
    settings = read_settings()
    with home_locked(settings.home):
        if setup:
            _ensure_engine(settings)
            _ensure_images(settings)
            if not (settings.home / "api-key").exists():  # the first start of this home
                install_first_servers(settings)
        configure_logging()
        _raise_file_limit()
        # Before anything of a running one is touched, and before the start, whose failures uvicorn tells as tracebacks.
        listener = _listen(settings.host, settings.port, "SANDGATE_PORT")
        if settings.tls_port is not None:
            _listen(settings.host, settings.tls_port, "SANDGATE_TLS_PORT").close()
        asyncio.run(check_start(settings))
        if settings.edge_workers:
            listener.close()  # it has shown that nobody else has the port, which sharing it would hide
            _serve_with_workers(settings)
        else:
            edge = make_app(settings)
            _Server(server_config(edge), settings, edge).run(sockets=[listener])


def _serve_with_workers(settings: Settings) -> None:
    # Whoever has no workers does not wait for what only they need.
    from app.edge.relay import FromWorkers  # noqa: PLC0415 - see above
    from app.edge.workers import EdgeWorkers  # noqa: PLC0415 - see above

    listeners = [
        _listen(settings.host, settings.port, "SANDGATE_PORT", shared=True) for _ in range(settings.edge_workers)
    ]
    workers = EdgeWorkers(listeners, settings.home, sandbox_domain=settings.sandbox_domain)
    edge = make_app(settings, workers)
    _Server(server_config(FromWorkers(edge)), settings, edge, workers).run(sockets=[workers.listen()])


@app.command()
def doctor() -> None:
    """Check what Sandgate needs, and say what to do about what is missing."""
    findings = asyncio.run(diagnose(read_settings()))
    table = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]failed[/]"
        table.add_row(mark, f"[bold]{finding.subject}[/]", finding.message)
        if finding.remedy:
            table.add_row("", "", f"[yellow]→ {finding.remedy}[/]")
    out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def uninstall(
    with_volumes: Annotated[
        bool, typer.Option("--volumes", help="Volumes too, with everything in them. There is no way back.")
    ] = False,
) -> None:
    """Take every sandbox, network and packet filter rule of this installation off the container engine.

    Volumes, images and the state in SANDGATE_HOME stay. Stop the server first.
    """
    settings = read_settings()

    async def remove() -> tuple[str, ...]:
        engine = make_engine(settings, sandbox_images(settings))
        try:
            return await engine.remove_installation(with_volumes=with_volumes)
        finally:
            await engine.aclose()

    with home_locked(settings.home):
        held = asyncio.run(remove())
        if with_volumes:
            with_database(forget_all_volumes)
    if held:
        raise EngineError(
            f"All is removed but the network {held[0]}: the engine takes it for used, though no container is on it."
            " Restart the engine, then uninstall once more."
        )
    kept = "and the images stay" if with_volumes else "stays, and so do the images and the volumes"
    out.print(
        f"Nothing of this installation is left on the container engine. {settings.home} {kept}.",
        soft_wrap=True,
    )


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="To tell it from others later.")]) -> None:
    """Make an API key of the default team and print it, once."""

    async def create(database: Database) -> str:
        accounts = Accounts(database)
        team = await accounts.default_team() or await accounts.create_team("default")
        return await accounts.create_key(team, name)

    out.print(with_database(create))


@keys.command("list")
def list_keys() -> None:
    """Show the API keys, without the keys themselves."""
    table = Table("id", "name", "ends in", "created", box=None)
    for key in with_database(lambda database: Accounts(database).list_keys()):
        table.add_row(key.id, key.name, key.hint, f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(table)


@keys.command("delete")
def delete_key(key_id: Annotated[str, typer.Argument(help="From `sandgate keys list`.")]) -> None:
    """Delete an API key; requests with it are refused from then on."""
    if not with_database(lambda database: Accounts(database).delete_key(key_id)):
        raise SandgateError(f"There is no key {key_id}. `sandgate keys list` shows all.")


@keys.command("rotate-encryption")
def rotate_encryption() -> None:
    """Encrypt everything stored with a fresh key and forget the old one. Stop the server first."""
    settings = read_settings()
    with home_locked(settings.home):
        vault = make_vault(settings)
        vault.add_key()
        renewed = with_database(lambda database: renew_stored_secrets(database, vault))
        vault.forget_old_keys()
    out.print(f"{renewed} stored secrets encrypted anew.")


@images.command("build")
def build_images() -> None:
    """Build the sandbox images that are missing."""
    settings = read_settings()
    _ensure_engine(settings)
    tags = _ensure_images(settings)
    for tag in (tags.base, tags.workspace, tags.gateway):
        out.print(tag)


def _raise_file_limit() -> None:
    """Shells start programs with 1,024 files; each request to a sandbox takes two sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Tells how to begin, once requests are served; at the end does not wait for streams that have none."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, edge: Edge, workers: EdgeWorkers | None = None
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._edge = edge
        self._workers = workers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            console.print(_welcome(public_url(self._settings), self._settings.home / "api-key"), soft_wrap=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(STREAMS_END_S, self._edge.close_streams)
        if self._workers is not None:
            await self._workers.stop()  # first, because what they still carry may have to reach the API
        await super().shutdown(sockets)


def _welcome(url: str, key_file: Path) -> str:
    return f"""
[bold green]Sandgate is ready[/] at {url} (API: {url}/docs, key: {key_file})

[bold]A sandbox with three MCP servers:[/]

read -r MCP_URL MCP_TOKEN < <(curl -s {url}/v2/sandboxes -H "X-API-KEY: $(cat {key_file})" \\
  -H 'Content-Type: application/json' -d '{{"timeout": 3600, "mcp": {{"time": {{}}, "fetch": {{}}, "git": {{}}}}}}' |
  python3 -c 'import json, sys; a = json.load(sys.stdin); m = a.get("mcp") or sys.exit(a["message"])
print(m["url"], m["token"])')

[bold]Claude Code with all of them:[/]

claude mcp add --transport http sandgate "$MCP_URL" --header "Authorization: Bearer $MCP_TOKEN"

[bold]The E2B SDKs:[/]

export E2B_API_KEY=$(cat {key_file}) E2B_API_URL={url} E2B_SANDBOX_URL={url} E2B_VOLUME_API_URL={url}
"""


def _listen(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """With `shared` others of this user may listen there too. Raises: SandgateError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        raise SandgateError(
            f"Cannot serve on {host}, port {port}: {error.strerror}. Set SANDGATE_HOST or {setting}."
        ) from error


def _ensure_engine(settings: Settings) -> None:
    if not _engine_answers():
        install_engine(console.print, answers=_engine_answers, log_file=settings.home / "dockerd.log")


def _engine_answers() -> bool:
    try:
        client = docker.from_env(timeout=5)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except DockerException:
        return False


def _ensure_images(settings: Settings) -> ImageTags:
    client = docker.from_env(timeout=600)
    try:
        builder = ImageBuilder(
            client, ROOT / "sandbox_images", base_image=settings.base_image, ca_bundle=settings.ca_bundle
        )
        if not builder.missing():
            return sandbox_images(settings)
        with BuildDisplay(console) as display:
            return builder.build(display.report)
    finally:
        client.close()


@contextmanager
def _errors_for_people() -> Iterator[None]:
    try:
        yield
    except SandgateError as error:
        console.print(f"[red]{error}[/]", markup=True)
        sys.exit(1)
