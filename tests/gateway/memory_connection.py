"""A server without pipe or process: a test sees each message it is sent, and says what comes back."""

from collections.abc import Callable, Iterable
from typing import Any

import orjson
from sandgate_gateway.callers import Caller
from sandgate_gateway.upstreams.connection import Listener
from sandgate_gateway.upstreams.stream import StreamConnection

Message = dict[str, Any]


def says_nothing(message: Message) -> Iterable[Message]:
    return ()


def deaf(method: str, params: dict[str, Any]) -> None:
    return


class MemoryConnection(StreamConnection):
    """Opened already, legacy. What `answers` gives for a message arrives in one piece before `write` returns."""

    def __init__(
        self,
        answers: Callable[[Message], Iterable[Message]] = says_nothing,
        *,
        listener: Listener = deaf,
        capabilities: dict[str, Any] | None = None,
    ) -> None:
        super().__init__("memory", listener)
        self.capabilities = capabilities or {}
        self.sent: list[Message] = []
        self._answers = answers

    async def start(self) -> None:
        return

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            message = orjson.loads(line)
            self.sent.append(message)
            self.say(*self._answers(message))

    def say(self, *messages: Message) -> None:
        self.received(b"".join(orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n" for message in messages))

    def hold_back(self, seconds: float) -> None:
        return

    async def close(self) -> None:
        self.ended("was stopped")

    def methods(self) -> list[str]:
        return [str(message.get("method")) for message in self.sent]


class Client(Caller):
    """A legacy client that has one call in flight."""

    key = "client"

    def __init__(self, log_level: str | None = None) -> None:
        self.log_level = log_level
