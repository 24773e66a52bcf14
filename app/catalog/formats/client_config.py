"""Configurations of MCP clients (`mcpServers` of Claude, `servers` of VS Code) and of LiteLLM as manifests. Pure.

Such a file holds one person's credentials, and a catalog is everybody's. So of a variable or header only what is
plainly nobody's becomes a default; every other value becomes a credential that each caller gives, and the definition's
notes say so. In arguments and URLs, which cannot be asked for, what looks like a credential is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from app.catalog.formats.builder import (
    ManifestBuilder,
    is_harmless,
    is_placeholder,
    is_secret_beside,
    looks_secret,
)
from app.catalog.formats.command_line import ImageCommand, PackageCommand, RemoteCommand, read_command
from app.catalog.formats.reading import (
    Manifest,
    RefusedError,
    catalog_name,
    entry_of,
    list_of,
    object_of,
    text_of,
    variable_name,
)

_INPUTS = "inputs"
_REFERENCE = re.compile(r"\$\{(?:(env|input):)?([A-Za-z_][A-Za-z0-9_.-]*)(?::-([^{}]*))?\}|\$([A-Z][A-Z0-9_]*)")
_HOME = re.compile(r"\$\{(?:workspaceFolder|userHome|workspaceRoot)\}|\$(?:HOME|PWD)\b|\$\{(?:HOME|PWD)\}")
_HOST_PATH = re.compile(r"(?:/(?:Users|home|Volumes|mnt|opt|srv|var|etc)/|~/|[A-Za-z]:[\\/]).*")
_NAMED_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]+")
_SSE = ("sse",)
_LITELLM_ENV = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
_LITELLM_HEADERS = {
    "bearer_token": ("Authorization", "Bearer "),
    "token": ("Authorization", "token "),
    "basic": ("Authorization", "Basic "),
    "authorization": ("Authorization", ""),
    "api_key": ("x-api-key", ""),
}
"""What LiteLLM sends for an `auth_type`, as the header and what stands in front of the value."""
_LITELLM_LEFT_OUT = (
    "allowed_tools", "disallowed_tools", "allowed_params", "pinned_tools", "access_groups", "timeout", "rpm",
    "max_concurrent_requests", "extra_headers", "token_exchange_endpoint", "client_id", "scopes",
)  # fmt: skip
_WITHOUT_MEANING = ("type", "transport", "disabled", "enabled", "autoApprove", "alwaysAllow", "gallery", "tools", "dev")
_READ = ("command", "args", "env", "url", "serverUrl", "httpUrl", "headers", "description", "title", _INPUTS)


def recognises(document: object) -> bool:
    return _servers_of(document) is not None


def entries_of(document: object) -> Iterator[tuple[str, object]]:
    """Each server, with the file's `inputs` (VS Code) put beside what it says itself."""
    inputs = document.get(_INPUTS) if isinstance(document, Mapping) else None
    for name, server in (_servers_of(document) or {}).items():
        yield str(name), {**server, _INPUTS: inputs or []} if isinstance(server, Mapping) else server


def manifest_of(entry: str, value: object) -> Manifest:
    """Raises: RefusedError."""
    server = entry_of(value)
    builder = ManifestBuilder(
        catalog_name(entry), title=text_of(server, "title") or entry, description=text_of(server, "description")
    )
    reader = _Reader(builder, list_of(server, _INPUTS))
    url = text_of(server, "url") or text_of(server, "serverUrl") or text_of(server, "httpUrl")
    if url:
        transport = "sse" if str(server.get("type") or server.get("transport")) in _SSE else "streamable-http"
        reader.put_remote(url, _texts(server, "headers"), transport)
    elif command := text_of(server, "command"):
        reader.put_command(command, [str(word) for word in list_of(server, "args")], _texts(server, "env"))
    else:
        raise RefusedError("command", "has neither a command nor a url", "Give one of them.")
    if left_out := sorted(str(field) for field in server if field not in (*_READ, *_WITHOUT_MEANING)):
        builder.note(f"Not taken over: {', '.join(left_out)}.")
    return builder.build()


def litellm_manifest_of(entry: str, value: object) -> Manifest:
    """Raises: RefusedError."""
    server = entry_of(value)
    if server.get("spec_path"):
        raise RefusedError(
            "spec_path",
            "is made from an OpenAPI document, which Sandgate does not turn into a server",
            "Name an MCP server that does it, by its URL, package or image.",
        )
    info = object_of(server, "mcp_info")
    builder = ManifestBuilder(
        catalog_name(entry),
        title=text_of(info, "server_name") or entry,
        description=text_of(server, "description") or text_of(info, "description"),
    )
    reader = _Reader(builder, [], _litellm_text)
    if alias := text_of(server, "alias"):
        builder.extra["aliases"] = [catalog_name(alias)] if catalog_name(alias) != builder.name else []
    if url := text_of(server, "url"):
        headers = _texts(server, "static_headers") | _litellm_auth(builder, server)
        reader.put_remote(url, headers, "sse" if server.get("transport") == "sse" else "streamable-http")
    elif command := text_of(server, "command"):
        reader.put_command(command, [str(word) for word in list_of(server, "args")], _texts(server, "env"))
    else:
        raise RefusedError("url", "has neither a url nor a command", "Give one of them.")
    if left_out := [field for field in _LITELLM_LEFT_OUT if server.get(field)]:
        builder.note(f"Not taken over: {', '.join(left_out)}. Sandgate has `mcpOptions` and limits for such rules.")
    return builder.build()


def _litellm_auth(builder: ManifestBuilder, server: Mapping[Any, Any]) -> dict[str, str]:
    kind = str(server.get("auth_type") or "none")
    if kind in _LITELLM_HEADERS:
        header, scheme = _LITELLM_HEADERS[kind]
        stated = text_of(server, "auth_value") or text_of(server, "authentication_token")
        name = match[1] if (match := _LITELLM_ENV.fullmatch(stated)) else variable_name(builder.name, "TOKEN")
        return {header: f"{scheme}${{{name}}}"}
    if kind != "none":
        builder.note(f"auth_type {kind} was not taken over; the server may refuse to connect.")
    return {}


def _litellm_text(value: str) -> str:
    return _LITELLM_ENV.sub(r"${\1}", value)


def _servers_of(document: object) -> Mapping[Any, Any] | None:
    """The map of servers, wherever clients put it. None if there is none."""
    if not isinstance(document, Mapping):
        return None
    nested = document.get("mcp")
    for holder in (document, nested if isinstance(nested, Mapping) else {}):
        for field in ("mcpServers", "servers", "context_servers"):
            servers = holder.get(field)
            if isinstance(servers, Mapping) and servers:
                return servers
    return None


class _Reader:
    """Reads the values of one server into its manifest."""

    def __init__(
        self, builder: ManifestBuilder, inputs: list[Any], normalise: Callable[[str], str] = lambda text: text
    ) -> None:
        self._builder = builder
        self._inputs = {str(item.get("id")): item for item in inputs if isinstance(item, Mapping)}
        self._normalise = normalise

    def put_remote(self, url: str, headers: Mapping[str, str], transport: str) -> None:
        for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
            if looks_secret(name, value):
                raise RefusedError(
                    "url",
                    f"holds a credential in {name}, and URLs show in logs",
                    "Send it in a header, if the server takes one, and import the entry again.",
                )
        if any(looks_secret("", part) for part in urlsplit(url).path.split("/")):
            raise RefusedError("url", "holds a credential in its path, and URLs show in logs", "Use one without it.")
        if urlsplit(url).password:
            raise RefusedError("url", "holds a password, and URLs show in logs", "Send it in a header.")
        self._builder.extra["type"] = "remote"
        self._builder.extra["remote"] = {
            "url": self._words(url),
            "transport_type": transport,
            "headers": {name: self._header(name, value) for name, value in headers.items()},
        }

    def put_command(self, command: str, arguments: list[str], env: Mapping[str, str]) -> None:
        match read_command(command, [self._normalise(word) for word in arguments]):
            case RemoteCommand() as remote:
                for name, value in env.items():
                    if not any(f"${{{name}}}" in header for header in remote.headers.values()):
                        self._builder.note(f"Not taken over: {name}, which only mcp-remote reads.")
                    elif not is_placeholder(value):
                        self._tell_dropped(name)
                self.put_remote(remote.url, remote.headers, remote.transport)
            case PackageCommand() as package:
                self._builder.extra["package"] = {
                    "registry": package.registry, "name": package.name, "version": package.version,
                }  # fmt: skip
                self._builder.command = [package.program, *self._arguments(package.arguments)]
                self._put_env(env)
            case ImageCommand() as image:
                self._put_image(image, env)

    def _put_image(self, image: ImageCommand, env: Mapping[str, str]) -> None:
        extra = self._builder.extra
        extra["image"] = image.image
        volumes = [_HOME.sub("{{sandbox.home}}", self._normalise(volume)) for volume in image.volumes]
        extra["volumes"] = [volume for volume in volumes if _NAMED_VOLUME.fullmatch(volume)]
        extra["hostPaths"] = [self._words(volume) for volume in volumes if not _NAMED_VOLUME.fullmatch(volume)]
        extra["hostAccess"] = image.host_access
        if image.user is not None:
            extra["user"] = self._words(image.user)
        if image.left_out:
            self._builder.note(f"Not taken over of docker run: {', '.join(image.left_out)}.")
        self._builder.command = self._arguments(image.arguments)
        passed = {name: env.get(name, "") for name, value in image.env.items() if value is None}
        self._put_env(passed | {name: value for name, value in image.env.items() if value is not None})

    def _put_env(self, env: Mapping[str, str]) -> None:
        for name, written in env.items():
            value = self._normalise(written)
            if looks_secret(name, value):
                self._ask_for(name, value)
            elif _REFERENCE.search(value) or _HOME.search(value):
                if self._is_secret_beside(name, value):
                    self._ask_for(name, value)
                else:
                    self._builder.set_env(name, self._words(value))
            elif is_placeholder(value):
                self._builder.set_env(name, self._builder.setting(name))
            elif is_harmless(value, name):
                self._builder.set_env(name, self._builder.setting(name, {"default": value}))
            else:
                self._ask_for(name, value)

    def _ask_for(self, name: str, value: str) -> None:
        """Let each caller give the value of a variable."""
        self._builder.secret(name, description=self._description_of(value))
        if not is_placeholder(value):
            self._tell_dropped(name)

    def _arguments(self, arguments: Sequence[str]) -> list[str]:
        previous = ""
        result: list[str] = []
        for argument in arguments:
            flag, equals, value = argument.partition("=")
            name, content = (flag, value) if equals and flag.startswith("-") else (previous, argument)
            is_option = name.startswith("-") and not content.startswith("-")
            if looks_secret(name if is_option else "", content):
                raise RefusedError(
                    "args",
                    f"{name if is_option else 'one of them'} takes a credential, and arguments show in process lists",
                    "Let the server read it from a variable in env, and import the entry again.",
                )
            if _HOST_PATH.match(argument):
                self._builder.note(f"{argument} is a path of the machine that the configuration was written on.")
            result.append(self._words(argument))
            previous = argument
        return result

    def _description_of(self, value: str) -> str:
        """What the file says of the input that the value asks for."""
        match = _REFERENCE.fullmatch(value)
        asked = self._inputs.get(match[2], {}) if match and match[1] == "input" else {}
        return str(asked.get("description") or "")

    def _header(self, name: str, written: str) -> str:
        value = self._normalise(written)
        if _REFERENCE.search(value) and not self._is_secret_beside(name, value):
            return self._words(value)
        if is_harmless(value) and not looks_secret(name, value):
            return value
        if not is_placeholder(value):
            self._tell_dropped(name)
        return self._builder.header_secret(name, value)

    def _is_secret_beside(self, name: str, value: str) -> bool:
        return is_secret_beside(name, _REFERENCE.sub("$", _HOME.sub("$", value)))

    def _words(self, text: str) -> str:
        """Text of the configuration with its variables as credentials and settings."""
        return _REFERENCE.sub(self._reference, _HOME.sub("{{sandbox.home}}", self._normalise(text)))

    def _reference(self, match: re.Match[str]) -> str:
        kind, name, default = match[1], match[2] or match[4], match[3]
        asked = self._inputs.get(name, {}) if kind == "input" else {}
        description = str(asked.get("description") or "")
        value = asked.get("default", default)
        # What a file shows to everybody whom it asks is no secret; what stands in for a variable may be.
        taken_over = not value or is_harmless(str(value), name) or "default" in asked
        if asked.get("password") or looks_secret(name, value or "") or not taken_over:
            if value:
                self._tell_dropped(name)
            return self._builder.secret(variable_name(name), description=description)
        schema: dict[str, Any] = {"description": description}
        if value is not None:
            schema["default"] = str(value)
        if options := asked.get("options"):
            schema["enum"] = options
        return self._builder.setting(name, schema, required="default" not in schema)

    def _tell_dropped(self, name: str) -> None:
        self._builder.note(f"The value of {name} was not taken over, as it may be a credential; each caller gives one.")


def _texts(server: Mapping[Any, Any], field: str) -> dict[str, str]:
    """A map of texts. Raises: RefusedError."""
    result: dict[str, str] = {}
    for name, value in object_of(server, field).items():
        if not isinstance(value, str | int | float):
            raise RefusedError(f"{field}.{name}", "expected text")
        result[str(name)] = str(value).lower() if isinstance(value, bool) else str(value)
    return result
