"""The machine a run was made on, its load, and how much processor time a fixed piece of work costs on it now."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import docker
import psutil

_DOCUMENT = {"items": [{"id": n, "name": f"item {n}", "values": [n, n / 3, str(n)]} for n in range(12)]}
_UNIT_REPETITIONS = 20


def describe(client: docker.APIClient) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": client.version()["Version"],
        "load_average_before": load_average(),
        "unit_ms": round(cpu_unit_ms(), 3),
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def cpu_unit_ms() -> float:
    """Processor time, in ms, of one unit of work: JSON written and read in plain Python, about 1 ms.

    Processors that are shared give a second of processor time now more work, now less. What is measured in units taken
    at the same time can be compared between machines and moments.
    """
    times: list[float] = []
    for _ in range(25):
        began = time.process_time()
        for _ in range(_UNIT_REPETITIONS):
            json.loads(json.dumps(_DOCUMENT))
        times.append((time.process_time() - began) * 1000)
    return statistics.median(times)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
