"""GET /metrics: what the workspace uses of what it has: its control group, or the whole machine where there is none.

Both versions of control groups are read, as a container sees them under /sys/fs/cgroup (Linux documentation,
admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory).
"""

import math
import os
import time
from pathlib import Path
from typing import Any

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class ResourceUsage:
    """CPU use is a mean since the call before, or since the start."""

    def __init__(self, cgroup_root: Path = _CGROUP_ROOT, proc: Path = _PROC) -> None:
        self._cgroup_root = cgroup_root
        self._proc = proc
        self._previous = (time.monotonic(), self._cpu_seconds())

    def read(self) -> dict[str, Any]:
        """Times in Unix seconds, sizes in bytes, CPU in percent of all CPUs of the sandbox."""
        cpu_count = self._cpu_count()
        now, used_s = time.monotonic(), self._cpu_seconds()
        elapsed_s, spent_s = now - self._previous[0], used_s - self._previous[1]
        self._previous = (now, used_s)
        percent = 100 * spent_s / (elapsed_s * cpu_count) if elapsed_s > 0 else 0.0
        total, used, cache = self._memory()
        disk = os.statvfs("/")
        return {
            "ts": int(time.time()),
            "cpu_count": cpu_count,
            "cpu_used_pct": round(min(max(percent, 0.0), 100.0), 2),
            "mem_total": total,
            "mem_used": used,
            "mem_cache": cache,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _cpu_count(self) -> int:
        quota, period = self._cpu_quota()
        available = len(os.sched_getaffinity(0))
        return min(available, math.ceil(quota / period)) if quota > 0 and period > 0 else available

    def _cpu_quota(self) -> tuple[int, int]:
        """Microseconds per period; 0 without a limit."""
        if text := _content(self._cgroup_root / "cpu.max"):
            quota, _, period = text.partition(" ")
            return _number(quota), _number(period)
        directory = self._cgroup_root / "cpu"
        return _number(_content(directory / "cpu.cfs_quota_us")), _number(_content(directory / "cpu.cfs_period_us"))

    def _cpu_seconds(self) -> float:
        unified = _fields(_content(self._cgroup_root / "cpu.stat"))
        if "usage_usec" in unified:
            return unified["usage_usec"] / 1e6
        if text := _content(self._cgroup_root / "cpuacct" / "cpuacct.usage"):
            return _number(text) / 1e9
        user, nice, system = _content(self._proc / "stat").split()[1:4]
        return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _memory(self) -> tuple[int, int, int]:
        """Total, used without the page cache, and the page cache."""
        machine = _fields(_content(self._proc / "meminfo").replace(":", ""))
        machine_total = machine["MemTotal"] * 1024
        for directory, usage, limit, cache in (
            (self._cgroup_root, "memory.current", "memory.max", "file"),
            (self._cgroup_root / "memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_cache"),
        ):
            if text := _content(directory / usage):
                cached = _fields(_content(directory / "memory.stat")).get(cache, 0)
                # Without a limit there stands `max`, or a number larger than any memory.
                total = min(_number(_content(directory / limit)) or machine_total, machine_total)
                return total, max(_number(text) - cached, 0), cached
        return machine_total, machine_total - machine["MemAvailable"] * 1024, machine["Cached"] * 1024


def _content(path: Path) -> str:
    """Empty when it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    """0 for what is no number, such as `max` or -1 for `no limit`."""
    return int(text) if text.isdecimal() else 0


def _fields(text: str) -> dict[str, int]:
    """The first number of each line by the line's first word."""
    words = (line.split() for line in text.splitlines())
    return {first: _number(rest[0]) for first, *rest in words if rest}
