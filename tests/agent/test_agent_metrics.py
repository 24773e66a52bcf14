"""What the workspace uses of what it has."""

import os
from pathlib import Path
from typing import Any

import pytest
from sandgate_agent.metrics import ResourceUsage

from tests.agent.running_agent import RunningAgent

MIB = 1 << 20


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")


def memory(metrics: dict[str, Any]) -> tuple[int, int, int]:
    return metrics["mem_total"], metrics["mem_used"], metrics["mem_cache"]


def test_the_limits_of_a_control_group_of_version_2_are_the_sandbox_s(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "cpu.max": "50000 100000",
            "cpu.stat": "usage_usec 1000000\nuser_usec 1",
            "memory.current": str(100 * MIB),
            "memory.max": str(512 * MIB),
            "memory.stat": f"anon 1\nfile {30 * MIB}\nkernel 5",
        },
    )

    metrics = ResourceUsage(cgroup_root=tmp_path).read()

    assert (metrics["cpu_count"], memory(metrics)) == (1, (512 * MIB, 70 * MIB, 30 * MIB))


def test_the_limits_of_a_control_group_of_version_1_are_the_sandbox_s(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "cpu/cpu.cfs_quota_us": "100000",
            "cpu/cpu.cfs_period_us": "100000",
            "cpuacct/cpuacct.usage": "1000000000",
            "memory/memory.usage_in_bytes": str(100 * MIB),
            "memory/memory.limit_in_bytes": str(512 * MIB),
            "memory/memory.stat": f"cache 7\ntotal_cache {30 * MIB}",
        },
    )

    metrics = ResourceUsage(cgroup_root=tmp_path).read()

    assert (metrics["cpu_count"], memory(metrics)) == (1, (512 * MIB, 70 * MIB, 30 * MIB))


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_without_a_limit_the_machine_s_memory_is_the_total(tmp_path: Path, limit: str) -> None:
    files = {"memory.current": "1", "memory.max": limit, "memory.stat": "file 0"}
    write_files(tmp_path, files)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert ResourceUsage(cgroup_root=tmp_path).read()["mem_total"] == machine


def test_cpu_use_is_measured_from_one_call_to_the_next(tmp_path: Path) -> None:
    write_files(tmp_path, {"cpu.max": "100000 100000", "cpu.stat": "usage_usec 0"})
    usage = ResourceUsage(cgroup_root=tmp_path)

    write_files(tmp_path, {"cpu.stat": "usage_usec 3600000000"})
    busy = usage.read()["cpu_used_pct"]
    idle = usage.read()["cpu_used_pct"]

    assert (busy, idle) == (100.0, 0.0)


def test_where_there_is_no_control_group_the_machine_is_measured(tmp_path: Path) -> None:
    metrics = ResourceUsage(cgroup_root=tmp_path).read()

    assert metrics["cpu_count"] == len(os.sched_getaffinity(0))
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    assert 0 < metrics["mem_cache"] < metrics["mem_total"]


def test_the_agent_answers_with_all_of_them(agent: RunningAgent) -> None:
    with agent.client() as client:
        metrics = client.get("/metrics").json()

    assert set(metrics) == {
        *("ts", "cpu_count", "cpu_used_pct"),
        *("mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"),
    }
    assert 0 < metrics["disk_used"] <= metrics["disk_total"]


def test_the_sandbox_s_own_variables_can_be_read(agent: RunningAgent) -> None:
    with agent.client() as client:
        assert client.get("/envs").json() == {"OF_THE_SANDBOX": "yes"}
        assert client.post("/envs").status_code == 405
        assert client.get("/envs", headers={"X-Access-Token": "wrong"}).status_code == 401
