"""The file that holds a token for root only. Standard library only: the mcp-gateway command imports it."""

import os

MCP_TOKEN_PATH = "/etc/mcp-gateway/.token"
"""Where E2B's SDKs read the MCP token back, byte for byte: no newline at its end."""


def write_token(path: str, token: str) -> None:
    """Replace the file's content at once, mode 0600. Safe to repeat."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    staged = f"{path}.new"
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(token)
    os.replace(staged, path)
