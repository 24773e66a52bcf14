"""The stdio door: one TCP connection is one run of one MCP server in the workspace, or one dial to a port there."""
