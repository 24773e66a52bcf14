"""The first line of a connection to the stdio door (ARCHITECTURE.md, section 6.2)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from sandgate_agent.errors import InvalidArgument
from sandgate_agent.fields import optional_text, string_list, string_map, text

_REPOSITORY = re.compile(r"(https?|git)://[^\s\0]+")


@dataclass(frozen=True, slots=True)
class CustomServer:
    """A server that comes from a repository."""

    repository: str
    install: str | None


@dataclass(frozen=True, slots=True)
class DoorRequest:
    server: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    working_directory: str | None
    user: str | None
    """None for the sandbox's default user."""
    custom: CustomServer | None


def decode_line(line: bytes) -> Mapping[str, Any]:
    """Raises: InvalidArgument."""
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the first line is not valid JSON") from error
    if not isinstance(message, dict):
        raise InvalidArgument("the first line must be a JSON object")
    return message


def parse_door_request(message: Mapping[str, Any]) -> DoorRequest:
    """Raises: InvalidArgument, naming the field."""
    server, command = text(message, "server"), string_list(message, "command")
    if not server or not command or not command[0]:
        raise InvalidArgument("server and command are required")
    repository = optional_text(message, "repository")
    install = optional_text(message, "install")
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise InvalidArgument("repository must be an https://, http:// or git:// address")
    return DoorRequest(
        server=server,
        command=command,
        environment=string_map(message, "env"),
        working_directory=optional_text(message, "cwd"),
        user=optional_text(message, "user"),
        custom=CustomServer(repository, install) if repository is not None else None,
    )
