"""The MCP servers of the sandbox: starting, watching and listing each of them."""
