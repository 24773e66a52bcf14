"""Processor time and memory of processes, those in containers included, as the engine's host sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import docker
import psutil

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def cpu_ms(pids: Iterable[int]) -> float:
    """Processor time used so far by the live threads of these processes, not of their children.

    From the scheduler's own books, in ns (proc/schedstat of the kernel's documentation): /proc/<pid>/stat counts in
    steps of 10 ms, too coarse for a process at rest.
    """
    spent_ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                spent_ns += int((thread / "schedstat").read_text().split()[0])
    return spent_ns / 1e6


def rss_mib(pids: Iterable[int]) -> float:
    """Resident memory, all added up: pages shared among them count more than once."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def pss_mib(pids: Iterable[int]) -> float:
    """Memory with pages shared among n processes counted as 1/n. Raises: PermissionError unless root."""
    total_kib = 0
    for pid in pids:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        total_kib += int(found[1]) if found else 0
    return total_kib / 1024


def children_of(pid: int) -> list[int]:
    """All descendants."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


class SandboxProcesses:
    """Who is who among the host's processes, for one sandbox."""

    def __init__(self, client: docker.APIClient, pod_id: str) -> None:
        self._inits: dict[str, int] = {}
        self.address = ""
        """Where the pod's ports are reached from the host."""
        found = client.containers(filters={"label": f"sandgate.pod={pod_id}"})
        for container in found:
            role = container["Labels"]["sandgate.role"]
            self._inits[role] = client.inspect_container(container["Id"])["State"]["Pid"]
            self.address = self.address or _address(container)

    @property
    def agent(self) -> int:
        """The process that serves in the workspace: the child of the container's init."""
        return psutil.Process(self._inits["workspace"]).children()[0].pid

    @property
    def gateway(self) -> int:
        return psutil.Process(self._inits["gateway"]).children()[0].pid

    @property
    def servers(self) -> list[int]:
        """Of the gateway container: package servers with all they started."""
        return children_of(self.gateway)

    @property
    def shims(self) -> list[int]:
        """The engine's own process beside each container."""
        return [parent.pid for init in self._inits.values() if (parent := psutil.Process(init).parent()) is not None]

    @property
    def all(self) -> list[int]:
        """With the containers' inits."""
        return [pid for init in self._inits.values() for pid in (init, *children_of(init))]


def _address(container: Mapping[str, object]) -> str:
    settings = container.get("NetworkSettings")
    networks = settings["Networks"] if isinstance(settings, dict) else {}
    return next((str(network["IPAddress"]) for network in networks.values() if network["IPAddress"]), "")
