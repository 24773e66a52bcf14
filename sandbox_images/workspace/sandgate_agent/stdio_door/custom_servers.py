"""Custom servers: cloned from a repository and installed once, in the home of the user they run as."""

import asyncio
import os
import shutil
from collections import defaultdict

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.processes.child import Command, Exit
from sandgate_agent.stdio_door.frames import FrameKind, FrameWriter
from sandgate_agent.stdio_door.request import CustomServer
from sandgate_agent.stdio_door.run import run_command
from sandgate_agent.users import User

_GIT_ENVIRONMENT = {
    # Ask nobody for a password: there is nobody.
    "GIT_TERMINAL_PROMPT": "0",
    # Also for what a redirection or a submodule leads to.
    "GIT_ALLOW_PROTOCOL": "https:http:git",
}


class InstallError(Exception):
    """Why a custom server could not be made ready; its output has been sent as stderr frames already."""


class CustomServers:
    def __init__(self, threads: FileThreads) -> None:
        self._threads = threads
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare(
        self, name: str, server: CustomServer, user: User, environment: dict[str, str], frames: FrameWriter
    ) -> str:
        """Clone and install unless that has been done; answers the server's directory.

        Connections for the same server take turns. Raises: InstallError, ConnectionError.
        """
        directory = os.path.join(user.home, ".mcp", name.replace("/", "-"))
        async with self._turns[directory]:
            await self._clone(server.repository, directory, user, environment, frames)
            if server.install:
                await self._install(server.install, directory, user, environment, frames)
        return directory

    async def _clone(
        self, repository: str, directory: str, user: User, environment: dict[str, str], frames: FrameWriter
    ) -> None:
        if await self._threads.run_as(user, os.path.isdir, directory):
            return
        # Under another name until it is whole: a clone that was interrupted must not pass for a server.
        partial = _beside(directory, "partial")
        try:
            await self._threads.run_as(user, _make_room, partial)
        except OSError as error:
            raise InstallError(f"no place to clone into: {partial}: {error.strerror}") from error
        command = Command(
            ("git", "clone", "--depth", "1", "--", repository, partial),
            environment | _GIT_ENVIRONMENT,
            os.path.dirname(partial),
            user,
        )
        await _run(command, f"cloning {repository}", frames)
        await self._threads.run_as(user, os.rename, partial, directory)

    async def _install(
        self, line: str, directory: str, user: User, environment: dict[str, str], frames: FrameWriter
    ) -> None:
        """Once per shell line: the file beside the server says which one has succeeded."""
        record = _beside(directory, "installed")
        if await self._threads.run_as(user, _content, record) == line:
            return
        command = Command(("/bin/bash", "-l", "-c", line), environment, directory, user)
        await _run(command, "the install command", frames)
        await self._threads.run_as(user, _write, record, line)


async def _run(command: Command, what: str, frames: FrameWriter) -> None:
    try:
        end = await run_command(command, frames, stdout_as=FrameKind.STDERR)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise InstallError(f"{what} failed: {command.arguments[0]}: {error.strerror}") from error
    if end != Exit(code=0):
        how = f"exited with code {end.code}" if end.signal is None else f"was ended by signal {end.signal}"
        raise InstallError(f"{what} {how}")


def _beside(directory: str, kind: str) -> str:
    parent, name = os.path.split(directory)
    return os.path.join(parent, f".{name}.{kind}")


def _make_room(directory: str) -> None:
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _content(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def _write(path: str, content: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
