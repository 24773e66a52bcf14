"""Where a volume may be mounted."""

from __future__ import annotations

import pytest

from app.errors import InvalidRequest, NotFound
from app.volumes.mounts import check_mount_paths
from tests.volumes.conftest import Rooms


@pytest.mark.parametrize(
    "path",
    [
        "/data",
        "/mnt/a/b",
        "/home/user",
        "/home/user/work",
        "/code",
        "/usr/local/share/x",
        "/opt/tool",
        "/srv",
        "/var/www",
    ],
)
def test_the_caller_s_own_places_can_be_used(path: str) -> None:
    assert check_mount_paths([path]) == (path,)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "data",
        "./data",
        "/",
        "//",
        "/data/..",
        "/data/../etc",
        "/proc",
        "/proc/1",
        "/sys/fs",
        "/dev/shm",
        "/run",
        "/run/sandgate",
        "/run/e2b",
        "/etc",
        "/etc/mcp-gateway",
        "/opt",
        "/opt/sandgate",
        "/opt/sandgate/agent",
        "/usr",
        "/usr/local",
        "/usr/bin",
        "/var",
        "/bin",
        "/a:b",
        "/a\nb",
        "/a\0b",
        "/" + "x" * 2000,
    ],
)
def test_what_the_sandbox_stands_on_cannot(path: str) -> None:
    with pytest.raises(InvalidRequest, match="volumeMounts"):
        check_mount_paths([path])


def test_a_path_can_be_used_once() -> None:
    with pytest.raises(InvalidRequest, match="two volumes"):
        check_mount_paths(["/data", "/data/"])


def test_a_sandbox_has_a_bounded_number_of_volumes() -> None:
    assert len(check_mount_paths([f"/mnt/{n}" for n in range(32)])) == 32
    with pytest.raises(InvalidRequest, match="32"):
        check_mount_paths([f"/mnt/{n}" for n in range(33)])


async def test_a_volume_that_is_not_there_is_named(rooms: Rooms) -> None:
    other = await rooms.accounts.create_team("other")
    await rooms.volumes.create(other.id, "theirs")
    with pytest.raises(NotFound, match="theirs"):
        await rooms.volumes.resolve_mounts(rooms.team.id, [("theirs", "/data")])
