"""The messages of process.Process, read from and written as the JSON form of protocol buffers.

Unknown fields are ignored, absent and null fields have their zero value, and both spellings of a name are accepted
(https://protobuf.dev/programming-guides/json/).
"""

import base64
import binascii
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandgate_agent.errors import InvalidArgument, Unimplemented
from sandgate_agent.fields import (
    boolean,
    check_environment,
    integer,
    message_field,
    optional_text,
    string_list,
    string_map,
    text,
)
from sandgate_agent.processes.child import Exit, TerminalSize
from sandgate_agent.processes.subscription import Event

Message = Mapping[str, Any]

_SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    signal.SIGTERM.value: signal.SIGTERM,
    signal.SIGKILL.value: signal.SIGKILL,
}


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    command: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    working_directory: str | None = None

    def to_json(self) -> dict[str, Any]:
        fields = {
            "cmd": self.command,
            "args": list(self.arguments),
            "envs": self.environment,
            "cwd": self.working_directory,
        }
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class StartRequest:
    config: ProcessConfig
    tag: str | None
    stdin: bool
    terminal: TerminalSize | None


@dataclass(frozen=True, slots=True)
class Selector:
    """Names a process by exactly one of the two."""

    pid: int | None = None
    tag: str | None = None

    def __str__(self) -> str:
        return f"process with pid {self.pid}" if self.tag is None else f"process with tag '{self.tag}'"


def parse_start(message: Message) -> StartRequest:
    process = message_field(message, "process")
    if process is None:
        raise InvalidArgument("process is required")
    command = text(process, "cmd")
    if not command:
        raise InvalidArgument("process.cmd is required")
    config = ProcessConfig(
        command=command,
        arguments=string_list(process, "args"),
        environment=string_map(process, "envs"),
        working_directory=optional_text(process, "cwd") or None,
    )
    if any("\0" in value for value in (command, *config.arguments)):
        raise InvalidArgument("a command and its arguments may not contain a NUL character")
    check_environment(config.environment)
    return StartRequest(
        config=config,
        tag=optional_text(message, "tag"),
        stdin=boolean(message, "stdin", default=True),
        terminal=parse_terminal(message),
    )


def parse_terminal(message: Message) -> TerminalSize | None:
    """The size in a message's field `pty`; zero, which a client without a terminal of its own sends, is unknown.

    Raises: InvalidArgument.
    """
    terminal = message_field(message, "pty")
    if terminal is None:
        return None
    size = message_field(terminal, "size") or {}
    columns, rows = integer(size, "cols"), integer(size, "rows")
    if not (0 <= columns < 1 << 16 and 0 <= rows < 1 << 16):
        raise InvalidArgument("pty.size needs cols and rows between 0 and 65535")
    return TerminalSize(columns=columns, rows=rows)


def parse_selector(message: Message) -> Selector:
    selector = message_field(message, "process") or {}
    tag = optional_text(selector, "tag")
    if tag is not None:
        return Selector(tag=tag)
    if "pid" not in selector:
        raise InvalidArgument("process needs a pid or a tag")
    return Selector(pid=integer(selector, "pid"))


def parse_signal(message: Message) -> signal.Signals:
    """Raises: Unimplemented for every signal but TERM and KILL."""
    name = message.get("signal")
    number = _SIGNALS.get(name) if isinstance(name, str | int) else None
    if number is None:
        raise Unimplemented(f"signal {name} is not supported: use SIGNAL_SIGTERM or SIGNAL_SIGKILL")
    return number


@dataclass(frozen=True, slots=True)
class Input:
    data: bytes
    is_for_terminal: bool


def parse_input(message: Message) -> Input:
    """The field `input` of a message. Raises: Unimplemented when it names neither stdin nor pty."""
    content = message_field(message, "input") or {}
    for name in ("stdin", "pty"):
        if (encoded := optional_text(content, name)) is not None:
            try:
                return Input(base64.b64decode(encoded, validate=True), is_for_terminal=name == "pty")
            except binascii.Error as error:
                raise InvalidArgument(f"input.{name} is not base64") from error
    raise Unimplemented("input must carry stdin or pty")


def start_event(pid: int) -> Event:
    return {"start": {"pid": pid}}


def data_event(stream: str, data: bytes) -> Event:
    return {"data": {stream: base64.b64encode(data).decode("ascii")}}


def end_event(end: Exit) -> Event:
    """Worded as Go's os.ProcessState words it, because that is what E2B's SDKs show."""
    if end.signal is not None:
        status = f"signal: {(signal.strsignal(end.signal) or str(end.signal)).lower()}"
        return {"end": {"exitCode": -1, "exited": False, "status": status, "error": status}}
    status = f"exit status {end.code}"
    failure = {"error": status} if end.code else {}
    return {"end": {"exitCode": end.code, "exited": True, "status": status, **failure}}
