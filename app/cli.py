"""`sandgate`: start the server, look at it, and manage keys, catalog and images."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import docker
import typer
from docker.errors import DockerException
from rich.table import Table

from app.accounts import Accounts
from app.build_display import BuildDisplay
from app.cli_packages import catalog, install_first_servers
from app.database import Database
from app.doctor import diagnose
from app.engines.images import ImageBuilder, ImageTags
from app.engines.installation import install_engine
from app.errors import EngineError, SandgateError
from app.home import home_locked
from app.main import make_engine, make_vault, sandbox_images
from app.secrets.at_rest import renew_stored_secrets
from app.server_jobs import remove_trials
from app.serving import serve
from app.settings import ROOT, Settings, read_settings
from app.terminal import console, out, with_database
from app.volumes.volumes import forget_all_volumes

app = typer.Typer(no_args_is_help=True, add_completion=False, help="A sandbox and every MCP server behind one URL.")
keys = typer.Typer(no_args_is_help=True, help="API keys, and the key that encrypts what is stored.")
images = typer.Typer(no_args_is_help=True, help="The images sandboxes are made of.")
app.add_typer(keys, name="keys")
app.add_typer(catalog, name="catalog")
app.add_typer(images, name="images")


def main() -> None:
    with _errors_for_people():
        app()


@app.command("serve")
def serve_after_setup(
    setup: Annotated[
        bool, typer.Option("--setup", help="First make sure that a Docker Engine runs and the images are there.")
    ] = False,
) -> None:
    """Serve the API and sandbox traffic."""
    if not setup:
        serve()
        return
    settings = read_settings()
    with home_locked(settings.home):
        _ensure_engine(settings)
        _ensure_images(settings)
        if not (settings.home / "api-key").exists():  # the first start of this home
            install_first_servers(settings)
    # In the place of this process, as it was started itself: nothing of the command line stays in memory.
    os.execv(sys.executable, [sys.executable, *(part for part in sys.orig_argv[1:] if part != "--setup")])


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
        held = await remove_trials(settings)
        engine = make_engine(settings, sandbox_images(settings))
        try:
            return (*held, *await engine.remove_installation(with_volumes=with_volumes))
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
