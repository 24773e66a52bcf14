"""A real MCP server over stdio, made with the official SDK."""

import os

from mcp.server import MCPServer

server = MCPServer("echo")


@server.tool()
def where() -> str:
    """The directory the server runs in."""
    return os.getcwd()


if __name__ == "__main__":
    server.run()
