"""The Connect protocol's stream framing as a client does it; written from the protocol's page, not from the agent."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx

STREAM_TYPE = "application/connect+json"


def envelope(message: Any, flags: int = 0) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(payload)) + payload


def envelopes_in(chunks: Iterator[bytes]) -> Iterator[tuple[int, Any]]:
    """Flags and content of each envelope, as soon as it is there."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 5:
            flags, length = struct.unpack(">BI", buffer[:5])
            if len(buffer) < 5 + length:
                break
            yield flags, json.loads(buffer[5 : 5 + length])
            buffer = buffer[5 + length :]
    assert buffer == b"", "the stream ends in the middle of an envelope"


def bash(script: str, **fields: Any) -> dict[str, Any]:
    """A Start message that runs a shell line."""
    return {"process": {"cmd": "/bin/bash", "args": ["-c", script]}, **fields}


def stream(
    client: httpx.Client, method: str, message: Any, headers: dict[str, str] | None = None
) -> list[tuple[int, Any]]:
    """All envelopes of one server stream."""
    answer = client.post(method, content=envelope(message), headers={"Content-Type": STREAM_TYPE, **(headers or {})})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == STREAM_TYPE
    return list(envelopes_in(iter([answer.content])))


def output(envelopes: list[tuple[int, Any]], name: str = "stdout") -> bytes:
    events = [content["event"] for flags, content in envelopes if flags == 0]
    return b"".join(base64.b64decode(event["data"].get(name, "")) for event in events if "data" in event)
