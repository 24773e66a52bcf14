"""The gateway as clients see it: one MCP endpoint that speaks both eras."""
