"""The workspace's agent: E2B's envd contract over HTTP, and the door through which the gateway runs MCP servers.

Everything in this container is the caller's to use and to break. The agent is the one process in it that runs as root
for Sandgate: what it starts on a caller's behalf runs as the user the caller named, and the files it makes are that
user's.
"""
