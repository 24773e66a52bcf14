"""The workspace's agent: E2B's envd contract over HTTP, and the door through which the gateway runs MCP servers.

Everything in this container is the caller's to use and to break. The agent is the one process in it that runs as root
for Sandgate; whatever it starts and every file it touches on a caller's behalf is done as the user the caller named.
"""
