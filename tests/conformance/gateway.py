"""A gateway in front of one server, for the official suite and for the client that the suite starts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.processes import REPOSITORY, ProcessError, fixture_command, tail
from tests.gateway.running_gateway import RunningGateway, running_gateway


def http_upstream(url: str) -> Mapping[str, Any]:
    return {"type": "http", "url": url, "headers": {}, "allowPrivate": True}


def stdio_upstream(era: str = "both") -> Mapping[str, Any]:
    """The fixture, started by the gateway itself."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    return {"type": "stdio", "command": fixture_command("--stdio", "--era", era), "env": env}


@contextmanager
def gateway_in_front_of(transport: Mapping[str, Any], folder: Path) -> Iterator[RunningGateway]:
    """Yields once the one server behind it is ready. Logs and data go to `folder`.

    Raises: ProcessError when the gateway does not start, or the server behind it does not.
    """
    with running_gateway(folder) as gateway:
        # One server and naming "auto": the names stay as the suite knows them.
        status = gateway.configure({"fixture": transport})
        if status["fixture"]["state"] != "ready":
            raise ProcessError(f"the server behind the gateway is not ready: {status}\n{tail(folder / 'gateway.log')}")
        yield gateway
