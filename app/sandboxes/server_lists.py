"""The tools, prompts and resources that an MCP server listed, as its gateway answered them."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from app.catalog.search import Tool

LARGEST = 4 * 1024 * 1024
"""Bytes of one server's lists. What is larger is listed by the server itself each time."""


@dataclass(frozen=True, slots=True)
class Lists:
    digest: str
    """Equal for lists that differ in the order of members only."""
    content: bytes
    """JSON; docs/ARCHITECTURE.md, section 6.4, `GET /lists`."""


def tools_in(content: bytes) -> list[Tool]:
    """The tools of `Lists.content`, for search."""
    return [
        Tool(tool["name"], str(tool.get("description") or ""))
        for tool in orjson.loads(content).get("tools", ())
        if isinstance(tool.get("name"), str)
    ]
