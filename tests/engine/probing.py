"""What becomes of connections that a pod tries to open."""

from __future__ import annotations

import json

from tests.engine.subjects import DockerSubject
from tests.waiting import BOUND_S

_PROBE = """
import json, socket, sys, time
from concurrent.futures import ThreadPoolExecutor

patience_s = float(sys.argv[2])

def is_answered(s):
    # Again each second: a datagram may get lost on its way to whoever is busy.
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at:
        try:
            s.send(b"ping")
            return bool(s.recv(16))
        except TimeoutError:
            pass
    return False

def outcome(target):
    kind, host, port = target
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as s:
            s.settimeout(1 if kind == "udp" else patience_s)
            s.connect((host, port))
            return "open" if kind == "tcp" or is_answered(s) else "dropped"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return error.__class__.__name__ if error.errno is None else __import__("errno").errorcode[error.errno]

with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(outcome, json.loads(sys.argv[1])))))
"""

Target = tuple[str, str, int]
"""`tcp` or `udp`, host, port."""

_BLOCKED = frozenset({"dropped", "EHOSTUNREACH", "ENETUNREACH"})
_SILENCE_S = 3.0
"""For what may be dropped, which nothing but the end of the patience tells."""


async def probe(
    subject: DockerSubject, pod_id: str, *targets: Target, patience_s: float = BOUND_S
) -> dict[Target, str]:
    """What becomes of a TCP connection or a UDP exchange from inside the pod, by target.

    "open", the name of an errno, or "dropped" when nothing was heard for as long as the patience lasts.
    """
    output = await subject.output_of(pod_id, "only", "python3", "-c", _PROBE, json.dumps(targets), str(patience_s))
    return dict(zip(targets, json.loads(output), strict=True))


async def assert_blocked(subject: DockerSubject, pod_id: str, *targets: Target) -> None:
    """None of them is reached from inside the pod, whether it is refused or, as some are, never answered."""
    outcomes = await probe(subject, pod_id, *targets, patience_s=_SILENCE_S)
    assert set(outcomes.values()) <= _BLOCKED, outcomes
