"""Resource URIs inside results, wherever the specification puts them. Pure; an unchanged result is the same object."""

from collections.abc import Callable
from typing import Any

Rewrite = Callable[[str], str]


def rewrite_result(method: str, value: Any, rewrite: Rewrite) -> Any:
    """A result of tools/call, prompts/get or resources/read with every resource URI rewritten."""
    if not isinstance(value, dict):
        return value
    match method:
        case "resources/read":
            return _with_list(value, "contents", lambda entry: _with_uri(entry, rewrite))
        case "tools/call":
            return _with_list(value, "content", lambda block: rewrite_block(block, rewrite))
        case "prompts/get":
            return _with_list(value, "messages", lambda message: _rewrite_message(message, rewrite))
        case _:
            return value


def rewrite_block(block: Any, rewrite: Rewrite) -> Any:
    """A content block: resource links and embedded resources name a resource, tool results hold blocks of their own."""
    if not isinstance(block, dict):
        return block
    match block.get("type"):
        case "resource_link":
            return _with_uri(block, rewrite)
        case "resource":
            embedded = _with_uri(block.get("resource"), rewrite)
            return block if embedded is block.get("resource") else {**block, "resource": embedded}
        case _:
            return block


def rewrite_ui_resource(tool: dict[str, Any], rewrite: Rewrite) -> dict[str, Any]:
    """A tool with the URI of its user interface rewritten: `_meta.ui.resourceUri` of the extension
    io.modelcontextprotocol/ui, and the older flat key `_meta["ui/resourceUri"]`."""
    meta = tool.get("_meta")
    if not isinstance(meta, dict):
        return tool
    changed = dict(meta)
    if isinstance(meta.get("ui"), dict) and isinstance(uri := meta["ui"].get("resourceUri"), str):
        changed["ui"] = {**meta["ui"], "resourceUri": rewrite(uri)}
    if isinstance(uri := meta.get("ui/resourceUri"), str):
        changed["ui/resourceUri"] = rewrite(uri)
    return tool if changed == meta else {**tool, "_meta": changed}


def mentions_resources(raw: bytes) -> bool:
    """Whether a result can contain a resource URI at all; cheap, errs on the side of yes."""
    return b'"resource' in raw or b'"uri"' in raw


def _rewrite_message(message: Any, rewrite: Rewrite) -> Any:
    if not isinstance(message, dict):
        return message
    block = rewrite_block(message.get("content"), rewrite)
    return message if block is message.get("content") else {**message, "content": block}


def _with_list(value: dict[str, Any], key: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    entries = value.get(key)
    if not isinstance(entries, list):
        return value
    changed = [change(entry) for entry in entries]
    return value if all(a is b for a, b in zip(changed, entries, strict=True)) else {**value, key: changed}


def _with_uri(entry: Any, rewrite: Rewrite) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get("uri"), str):
        return entry
    uri = rewrite(entry["uri"])
    return entry if uri == entry["uri"] else {**entry, "uri": uri}
