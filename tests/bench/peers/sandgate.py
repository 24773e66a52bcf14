"""Sandgate in the same place: the same server as a remote one of a sandbox, through edge and gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.bed import installed
from tests.bench.peers.peer import Running, Upstream, echo_tool

_SERVER = "bench-http"


@contextmanager
def sandgate(folder: Path, upstream: Upstream) -> Iterator[Running]:
    """Its processes are the control plane, which holds the edge, and the gateway; the start is a cold one."""
    manifest = {
        "type": "remote",
        "remote": {"url": upstream.url, "transport_type": "streamable-http", "allowPrivate": True},
    }
    settings = {"SANDGATE_EGRESS_ALLOW": f"{upstream.host}:{upstream.port}"}
    began = time.monotonic()
    with installed(settings=settings, manifests={_SERVER: manifest}) as bed, bed.sandbox(mcp={_SERVER: {}}) as sandbox:
        assert echo_tool(bed.http, bed.edge(sandbox))
        started_in_s = time.monotonic() - began
        processes = [bed.control_plane, bed.processes_of(sandbox).gateway]
        yield Running("Sandgate", bed.edge(sandbox), lambda: processes, started_in_s)
