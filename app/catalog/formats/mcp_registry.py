"""`server.json` of the official MCP registry, by itself or as a page of its API, as manifests. Pure.

Fields are those of https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json and of the revisions
before it, which wrote them with underscores. Where an entry offers several ways to run, a package wins over an image,
which needs a pull, and an image over a remote, which takes the caller's data elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from app.catalog.formats.builder import ManifestBuilder
from app.catalog.formats.reading import (
    Manifest,
    RefusedError,
    catalog_name,
    entry_of,
    objects_of,
    text_of,
    variable_name,
)

_OFFICIAL = "io.modelcontextprotocol.registry/official"
_VARIABLE = re.compile(r"\{([A-Za-z0-9_.-]+)\}")
_TYPES = {"number": "number", "boolean": "boolean"}
_REMOTES = {"streamable-http": "streamable-http", "http": "streamable-http", "sse": "sse"}
_NO_MEANING_HERE = ("-i", "--interactive", "-t", "--tty", "--rm", "--init", "-y", "--yes", "--quiet", "-q", "--pull")


def recognises(document: object) -> bool:
    return any(_is_server(server) for server, _ in _servers(document))


def entries_of(document: object) -> Iterator[tuple[str, object]]:
    """The newest version of each server of the document, under the server's name."""
    newest: dict[str, object] = {}
    for server, official in _servers(document):
        name = str(server.get("name") or "(no name)") if isinstance(server, Mapping) else "(no name)"
        if official.get("status") == "deleted":
            newest.setdefault(name, None)
        elif newest.get(name) is None or official.get("isLatest") is not False:
            newest[name] = server
    yield from newest.items()


def manifest_of(entry: str, value: object) -> Manifest:
    """Raises: RefusedError."""
    if value is None:
        raise RefusedError("status", "its publisher has withdrawn it", "Look for its successor in the registry.")
    server = entry_of(value)
    builder = ManifestBuilder(
        catalog_name(entry),
        title=text_of(server, "title") or entry.rpartition("/")[2],
        description=text_of(server, "description"),
    )
    packages = {_registry_type(package): package for package in reversed(objects_of(server, "packages"))}
    remotes = [item for item in objects_of(server, "remotes") if _get(item, "type", "transport_type") in _REMOTES]
    if package := next((packages[kind] for kind in ("pypi", "npm") if kind in packages), None):
        _put_package(builder, package)
    elif "oci" in packages:
        _put_image(builder, packages["oci"])
    elif remotes:
        _put_remote(builder, remotes[0])
    else:
        kinds = ", ".join(sorted({*packages, *(str(_get(item, "type")) for item in objects_of(server, "remotes"))}))
        raise RefusedError(
            "packages",
            f"offers no npm, PyPI or image package that speaks on stdio and no HTTP remote, but: {kinds or 'nothing'}",
            "Ask its publisher for one of those.",
        )
    repository = server.get("repository")
    page = server.get("websiteUrl") or (repository.get("url") if isinstance(repository, Mapping) else None)
    if isinstance(page, str) and page.startswith(("https://", "http://")):
        builder.extra["homepage"] = page
    builder.extra["annotations"] = {"registry": {"name": entry, "version": server.get("version")}}
    return builder.build()


def _servers(document: object) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    """Every server of the document with what the registry says of it."""
    listed = document.get("servers") if isinstance(document, Mapping) else None
    for item in listed if isinstance(listed, list) else [document]:
        if not isinstance(item, Mapping):
            continue
        meta = item.get("_meta")
        official = meta.get(_OFFICIAL) if isinstance(meta, Mapping) else None
        server = item.get("server", item)
        yield server, official if isinstance(official, Mapping) else {}


def _is_server(server: object) -> bool:
    return (
        isinstance(server, Mapping)
        and isinstance(server.get("name"), str)
        and (isinstance(server.get("packages"), list) or isinstance(server.get("remotes"), list))
    )


def _registry_type(package: Mapping[Any, Any]) -> str:
    transport = package.get("transport")
    kind = transport.get("type", "stdio") if isinstance(transport, Mapping) else "stdio"
    name = str(_get(package, "registryType", "registry_type", "registry_name"))
    return {"docker": "oci"}.get(name, name) if kind == "stdio" else f"{name} over {kind}"


def _put_package(builder: ManifestBuilder, package: Mapping[Any, Any]) -> None:
    name = str(_get(package, "identifier", "name") or "")
    version = str(package.get("version") or "")
    if not version or version == "latest":
        raise RefusedError("packages.version", f"names no version of {name}", "State exactly one version.")
    registry = _registry_type(package)
    builder.extra["package"] = {"registry": registry, "name": name, "version": version}
    builder.command.append(name.rpartition("/")[2])
    for argument in objects_of(package, "runtimeArguments"):
        if (flag := str(argument.get("name") or argument.get("value") or "")) not in _NO_MEANING_HERE:
            builder.note(f"The runtime argument {flag} was not taken over.")
    _put_arguments(builder, package)
    _put_environment(builder, package)


def _put_image(builder: ManifestBuilder, package: Mapping[Any, Any]) -> None:
    image = str(_get(package, "identifier", "name") or "")
    version = package.get("version")
    has_tag = "@" in image or ":" in image.rpartition("/")[2]
    builder.extra["image"] = image if has_tag or not version else f"{image}:{version}"
    for argument in objects_of(package, "runtimeArguments"):
        _put_docker_option(builder, str(argument.get("name") or ""), _value(builder, argument, "runtime") or "")
    _put_arguments(builder, package)
    _put_environment(builder, package)


def _put_docker_option(builder: ManifestBuilder, flag: str, value: str) -> None:
    match flag:
        case "-e" | "--env":
            name, _, content = value.partition("=")
            builder.set_env(name, content)
        case "-v" | "--volume":
            builder.extra.setdefault("hostPaths", []).append(value)
        case "--mount":
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            source = parts.get("src") or parts.get("source") or ""
            target = parts.get("dst") or parts.get("target") or parts.get("destination") or ""
            builder.extra.setdefault("hostPaths", []).append(f"{source}:{target}")
        case "-u" | "--user":
            builder.extra["user"] = value
        case "--privileged" | "--cap-add" | "--device" | "--network" | "--net" | "--pid":
            builder.extra.setdefault("hostAccess", {})[flag.lstrip("-")] = value or True
        case _ if flag not in _NO_MEANING_HERE and (flag or value not in _NO_MEANING_HERE):
            builder.note(f"The runtime argument {flag or value} was not taken over.")


def _put_arguments(builder: ManifestBuilder, package: Mapping[Any, Any]) -> None:
    for index, argument in enumerate(objects_of(package, _key(package, "packageArguments", "package_arguments"))):
        if argument.get("type") == "named":
            flag = text_of(argument, "name")
            if not _asks(argument) and "value" not in argument:
                builder.command.append(flag)
            elif (value := _value(builder, argument, flag.lstrip("-"))) is not None:
                builder.command += [flag, value]
            else:
                builder.note(f"The optional argument {flag} was not taken over.")
        else:
            name = str(_get(argument, "valueHint", "value_hint") or f"argument{index + 1}")
            value = _value(builder, argument, name, into=True)
            builder.command += [] if value is None else [value]


def _asks(argument: Mapping[Any, Any]) -> bool:
    """Whether a caller has something to say: a flag alone has neither a hint nor choices nor a default."""
    fields = ("valueHint", "value_hint", "default", "choices", "format", "placeholder", "isSecret", "is_secret")
    return any(argument.get(field) is not None for field in fields)


def _put_environment(builder: ManifestBuilder, package: Mapping[Any, Any]) -> None:
    for variable in objects_of(package, _key(package, "environmentVariables", "environment_variables")):
        name = text_of(variable, "name")
        if _get(variable, "isSecret", "is_secret") and "value" not in variable:
            builder.secret(name, required=_is_required(variable), description=text_of(variable, "description"))
        elif (value := _value(builder, variable, name, optional=True)) is not None:
            builder.set_env(name, value)


def _put_remote(builder: ManifestBuilder, remote: Mapping[Any, Any]) -> None:
    headers: dict[str, str] = {}
    for header in objects_of(remote, "headers"):
        name = text_of(header, "name")
        if _get(header, "isSecret", "is_secret") and "value" not in header:
            env = variable_name(name if name.lower() != "authorization" else f"{builder.name}_TOKEN")
            headers[name] = builder.secret(
                env, required=_is_required(header), description=text_of(header, "description")
            )
        elif (value := _value(builder, header, name, optional=True)) is not None:
            headers[name] = value
    builder.extra["type"] = "remote"
    builder.extra["remote"] = {
        "url": _value(builder, {"value": text_of(remote, "url"), "variables": remote.get("variables")}, "url") or "",
        "transport_type": _REMOTES[str(_get(remote, "type", "transport_type"))],
        "headers": headers,
    }


def _value(
    builder: ManifestBuilder, given: Mapping[Any, Any], name: str, *, into: bool = False, optional: bool = False
) -> str | None:
    """The text that stands for a value: its own words, or what a caller is asked for.

    None for an argument that a caller may leave out and that then must not be there; `into` and `optional` are places
    where an empty value vanishes by itself.
    """
    variables = given.get("variables")
    known = variables if isinstance(variables, Mapping) else {}
    if (value := given.get("value")) is not None:
        return _VARIABLE.sub(
            lambda match: _ask(builder, match[1], known[match[1]]) if match[1] in known else match[0], str(value)
        )
    if not (into or optional or _is_required(given) or given.get("default") is not None):
        return None
    return _ask(builder, name, given, into=into)


def _ask(builder: ManifestBuilder, name: str, given: object, *, into: bool = False) -> str:
    asked = given if isinstance(given, Mapping) else {}
    description = text_of(asked, "description")
    if _get(asked, "isSecret", "is_secret"):
        return builder.secret(variable_name(name), required=_is_required(asked), description=description)
    default = asked.get("default") if asked.get("default") is not None else asked.get("value")
    type = (
        "array" if _get(asked, "isRepeated", "is_repeated") and into else _TYPES.get(str(asked.get("format")), "string")
    )
    schema: dict[str, Any] = {"type": type, "description": description}
    if default is not None:
        schema["default"] = _typed(type, default)
    if choices := asked.get("choices"):
        schema["enum"] = choices
    return builder.setting(name, schema, required=_is_required(asked) and default is None, into=into)


def _typed(type: str, default: object) -> object:
    """The registry writes every default as text."""
    text = str(default)
    match type:
        case "number":
            return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else default
        case "boolean":
            return {"true": True, "false": False}.get(text.lower(), default)
        case "array":
            return default if isinstance(default, list) else [text]
        case _:
            return text


def _is_required(given: Mapping[Any, Any]) -> bool:
    return bool(_get(given, "isRequired", "is_required"))


def _get(value: Mapping[Any, Any], *spellings: str) -> Any:
    return next((value[name] for name in spellings if name in value), None)


def _key(value: Mapping[Any, Any], *spellings: str) -> str:
    return next((name for name in spellings if name in value), spellings[0])
