"""Ports for servers that are told where to listen."""

from __future__ import annotations

import itertools
import os
import random
import socket
from contextlib import suppress

_FIRST, _EACH = 20_000, 1_000
"""Below those that Linux gives to whoever connects (32768 and up, by net.ipv4.ip_local_port_range): one of them may be
taken between the answer here and the start of the server, or while a server is started again."""
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Which of the processes of a run this is; each has ports of its own."""
_OWN = range(_FIRST + _PROCESS % 12 * _EACH, _FIRST + (_PROCESS % 12 + 1) * _EACH)
_in_turn = itertools.cycle(random.sample(_OWN, _EACH))


def free_port(host: str = "127.0.0.1") -> int:
    """One that nothing listens at."""
    for port in itertools.islice(_in_turn, _EACH):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(f"none of the ports {_OWN} is free at {host}")


def is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True
