"""What becomes of connections that a pod tries to open."""

from __future__ import annotations

import json

from tests.engine.subjects import DockerSubject

_PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def outcome(target):
    kind, host, port = target
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as s:
            s.settimeout(3)
            s.connect((host, port))
            if kind == "udp":
                s.send(b"ping")
                s.recv(16)
            return "open"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return error.__class__.__name__ if error.errno is None else __import__("errno").errorcode[error.errno]

with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(outcome, json.loads(sys.argv[1])))))
"""
BLOCKED = frozenset({"dropped", "EHOSTUNREACH", "ENETUNREACH"})


async def probe(subject: DockerSubject, pod_id: str, *targets: tuple[str, str, int]) -> dict[tuple[str, str, int], str]:
    """What becomes of a TCP connection or a UDP exchange from inside the pod, by target."""
    output = await subject.output_of(pod_id, "only", "python3", "-c", _PROBE, json.dumps(targets))
    return dict(zip(targets, json.loads(output), strict=True))
