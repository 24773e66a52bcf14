"""Sessions to MCP servers: one module per way to reach one."""
