"""The calls of process.Process, translated to and from the registry."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.connect_rpc import Call, ClientStreaming, Method, ServerStream, ServerStreaming, Unary
from sandgate_agent.environment import process_environment
from sandgate_agent.errors import DeadlineExceeded, InvalidArgument, PermissionDenied
from sandgate_agent.fields import message_field
from sandgate_agent.paths import resolve_path
from sandgate_agent.processes.child import Command
from sandgate_agent.processes.messages import (
    parse_input,
    parse_selector,
    parse_signal,
    parse_start,
    parse_terminal,
)
from sandgate_agent.processes.process import Process
from sandgate_agent.processes.registry import ProcessRegistry
from sandgate_agent.processes.subscription import Subscription
from sandgate_agent.users import User

_KEEPALIVE: dict[str, Any] = {"event": {"keepalive": {}}}

Message = Mapping[str, Any]


class ProcessService:
    def __init__(self, registry: ProcessRegistry, configuration: ConfigurationHolder, threads: FileThreads) -> None:
        self._registry = registry
        self._configuration = configuration
        self._threads = threads

    def methods(self) -> dict[str, Method]:
        return {
            "/process.Process/List": Unary(self._list),
            "/process.Process/Start": ServerStreaming(self._start, _KEEPALIVE),
            "/process.Process/Connect": ServerStreaming(self._connect, _KEEPALIVE),
            "/process.Process/Update": Unary(self._update),
            "/process.Process/SendInput": Unary(self._send_input),
            "/process.Process/StreamInput": ClientStreaming(self._stream_input),
            "/process.Process/SendSignal": Unary(self._send_signal),
            "/process.Process/CloseStdin": Unary(self._close_stdin),
        }

    async def _list(self, _call: Call, _message: Message) -> Message:
        processes = []
        for process in self._registry.running():
            tag = {} if process.tag is None else {"tag": process.tag}
            processes.append({"config": process.config.to_json(), "pid": process.pid, **tag})
        return {"processes": processes}

    async def _start(self, call: Call, message: Message, stream: ServerStream) -> None:
        request = parse_start(message)
        wanted = request.config.working_directory or call.default_directory
        directory = await self._threads.run_as(call.user, _working_directory, wanted, call.user)
        command = Command(
            arguments=(request.config.command, *request.config.arguments),
            environment=process_environment(call.user, self._configuration.current, request.config.environment),
            working_directory=directory,
            user=call.user,
        )
        process, subscription = await self._registry.start(request, command, deadline_s=call.timeout_s)
        await _pass_on(process, subscription, stream)

    async def _connect(self, call: Call, message: Message, stream: ServerStream) -> None:
        process = self._registry.find(parse_selector(message))
        try:
            async with asyncio.timeout(call.timeout_s):
                await _pass_on(process, process.subscribe(), stream)
        except TimeoutError as error:
            raise DeadlineExceeded("the connection lasted longer than its Connect-Timeout-Ms") from error

    async def _update(self, _call: Call, message: Message) -> Message:
        process = self._registry.find_running(parse_selector(message))
        size = parse_terminal(message)
        if size is not None:
            process.resize(size)
        return {}

    async def _send_input(self, _call: Call, message: Message) -> Message:
        process = self._registry.find_running(parse_selector(message))
        await process.write(parse_input(message))
        return {}

    async def _stream_input(self, _call: Call, messages: AsyncIterator[Message]) -> Message:
        process: Process | None = None
        async for message in messages:
            if (start := message_field(message, "start")) is not None:
                process = self._registry.find_running(parse_selector(start))
            elif (data := message_field(message, "data")) is not None:
                if process is None:
                    raise InvalidArgument("the first message of the stream must be start")
                await process.write(parse_input(data))
        return {}

    async def _send_signal(self, _call: Call, message: Message) -> Message:
        process = self._registry.find_running(parse_selector(message))
        process.signal(parse_signal(message))
        return {}

    async def _close_stdin(self, _call: Call, message: Message) -> Message:
        await self._registry.find_running(parse_selector(message)).close_stdin()
        return {}


async def _pass_on(process: Process, subscription: Subscription, stream: ServerStream) -> None:
    try:
        async for event in subscription:
            await stream.send({"event": event})
    finally:
        process.unsubscribe(subscription)


def _working_directory(wanted: str, user: User) -> str:
    """Where a process starts: the directory wanted, else the user's home, else the root. Raises: AgentError."""
    if not wanted:
        return user.home if os.path.isdir(user.home) else "/"
    directory = resolve_path(wanted, user)
    try:
        is_directory = stat.S_ISDIR(os.stat(directory).st_mode)
    except PermissionError as error:
        raise PermissionDenied(f"permission denied: cwd '{directory}'") from error
    except OSError as error:
        raise InvalidArgument(f"cwd '{directory}' does not exist") from error
    if not is_directory:
        raise InvalidArgument(f"cwd '{directory}' is not a directory")
    return directory
