"""The stdio door (ARCHITECTURE.md, section 6.2): the gateway's way to run an MCP server beside the agent's files.

The edge comes by it too, to what listens on loopback only.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.background_tasks import BackgroundTasks
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.environment import process_environment
from sandgate_agent.errors import AgentError
from sandgate_agent.fields import text
from sandgate_agent.paths import resolve_path
from sandgate_agent.processes.child import Command
from sandgate_agent.stdio_door.custom_servers import CustomServers, InstallError
from sandgate_agent.stdio_door.dial import dial, parse_dial
from sandgate_agent.stdio_door.frames import FrameWriter
from sandgate_agent.stdio_door.inbox import Inbox
from sandgate_agent.stdio_door.request import DoorRequest, decode_line, parse_door_request
from sandgate_agent.stdio_door.run import run_command
from sandgate_agent.users import find_user

_LINE_LIMIT = 1 << 20
_LINE_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class StdioDoor:
    def __init__(self, configuration: ConfigurationHolder, threads: FileThreads, tasks: BackgroundTasks) -> None:
        self._configuration = configuration
        self._tasks = tasks
        self._custom_servers = CustomServers(threads)

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[None]:
        """Connections that are open when the context is left belong to the background tasks."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.start(self._serve(reader, writer), name="door-connection")

        server = await asyncio.start_server(accept, sock=socket.create_server((host, port)), limit=_LINE_LIMIT)
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                message = decode_line(await reader.readuntil(b"\n"))
            if not self._configuration.is_stdio_token(text(message, "token")):
                _log.warning("door_connection_refused")
            elif "dial" in message:
                await dial(parse_dial(message), writer)
            else:
                with Inbox(reader, writer) as inbox:
                    await self._run(message, inbox, FrameWriter(writer))
        except (TimeoutError, AgentError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _log.warning("door_connection_without_request")
        except ConnectionError:
            _log.info("door_connection_lost")
        finally:
            await _close(writer)

    async def _run(self, message: Mapping[str, Any], inbox: Inbox, frames: FrameWriter) -> None:
        """Raises: ConnectionError."""
        try:
            command = await self._prepare(parse_door_request(message), inbox, frames)
            end = await run_command(command, frames, stdin=inbox)
        except (AgentError, InstallError) as error:
            answer: dict[str, Any] = {"error": f"could not start: {error}"}
        except ConnectionError:
            raise
        except OSError as error:
            answer = {"error": f"could not start: {error.strerror}: {error.filename}"}
        else:
            answer = {"exitCode": end.code} if end.signal is None else {"signal": end.signal}
        await frames.exit(answer)

    async def _prepare(self, request: DoorRequest, inbox: Inbox, frames: FrameWriter) -> Command:
        """Raises: AgentError, InstallError, ConnectionError."""
        configuration = self._configuration.current
        user = find_user(request.user or configuration.default_user)
        environment = process_environment(user, configuration, request.environment)
        if request.custom is None:
            directory = resolve_path(request.working_directory or "~", user)
        else:
            async with self._until_hang_up(inbox):
                directory = await self._custom_servers.prepare(
                    request.server, request.custom, user, environment, frames
                )
        return Command(request.command, environment, directory, user)

    @contextlib.asynccontextmanager
    async def _until_hang_up(self, inbox: Inbox) -> AsyncIterator[None]:
        """Give up what is done inside when the gateway hangs up. Raises: ConnectionAbortedError then."""
        try:
            async with asyncio.timeout(None) as patience:

                async def watch() -> None:
                    await inbox.ended.wait()
                    patience.reschedule(asyncio.get_running_loop().time())

                watching = self._tasks.start(watch(), name="door-hang-up")
                try:
                    yield
                finally:
                    watching.cancel()
        except TimeoutError as error:
            raise ConnectionAbortedError("the gateway hung up") from error


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except ConnectionError:
        _log.info("door_connection_lost")
