"""Names for sandboxes as an operator's DNS gives them: one wildcard that leads to this machine.

It is given to single processes, in a mount namespace of their own (unshare(1)), so nothing of the machine is changed.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "127.0.53.1"
"""Any loopback address that nobody else serves DNS at."""
_A, _IN = 1, 1
_AUTHORITATIVE, _UNKNOWN_NAME = 0x8580, 3


@contextmanager
def wildcard(domain: str) -> Iterator[None]:
    """A name server at ADDRESS; takes root, for its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((ADDRESS, 53))
        thread = threading.Thread(target=_serve, args=(door, domain), daemon=True)
        thread.start()
        yield
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"", (ADDRESS, 53))
        thread.join(timeout=10)


def _serve(door: socket.socket, domain: str) -> None:
    while True:
        query, client = door.recvfrom(512)
        if not query:
            return
        door.sendto(answer(query, domain), client)


def answer(query: bytes, domain: str) -> bytes:
    """127.0.0.1 for the domain and all below it (RFC 1035, 4.1)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += length + 1
    (kind,) = struct.unpack_from("!H", query, at + 1)
    is_known = f".{'.'.join(labels)}".endswith(f".{domain}")
    has_record = is_known and kind == _A
    head = struct.pack("!HHHHH", _AUTHORITATIVE | (0 if is_known else _UNKNOWN_NAME), 1, int(has_record), 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH4s", _A, _IN, 0, 4, socket.inet_aton("127.0.0.1"))
    return query[:2] + head + query[12 : at + 5] + (record if has_record else b"")


def resolving(command: Sequence[str], folder: Path) -> list[str]:
    """The command, asking the server above and nothing else for names. `folder` holds what that takes."""
    (folder / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
    (folder / "nsswitch.conf").write_text("hosts: files dns\n")
    mounts = " && ".join(f'mount --bind "$0/{name}" /etc/{name}' for name in ("resolv.conf", "nsswitch.conf"))
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', str(folder), *command]
