"""Which mounts are on a network, and watching them."""

import httpx
import pytest
from sandgate_agent.filesystem.mounts import is_on_network_mount, network_devices

from tests.agent.running_agent import RunningAgent

MOUNT_TABLE = """\
22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
30 22 0:45 / /mnt/nfs rw,relatime shared:1 master:2 - nfs4 server:/export rw,vers=4.2
31 22 0:46 / /mnt/share rw - cifs //server/share rw
32 22 0:47 / /mnt/a\\040b rw,nosuid - fuse.sshfs user@host:/ rw
33 22 8:1 / /mnt/disk rw - ext4 /dev/sda1 rw
34 22 0:48 / /mnt/block rw - fuseblk /dev/sdb1 rw
35 22 0:49 / /sys/fs/fuse/connections rw - fusectl fusectl rw
"""


def test_network_mounts_are_told_by_their_type() -> None:
    assert network_devices(MOUNT_TABLE) == {"0:45", "0:46", "0:47"}


@pytest.mark.parametrize("path", ["/", "/proc", "/tmp"])
def test_what_is_local_is_no_network_mount(path: str) -> None:
    assert is_on_network_mount(path) is False


@pytest.mark.parametrize("allowed", [True, False])
def test_a_local_directory_is_watched_whatever_is_said_about_network_mounts(agent: RunningAgent, allowed: bool) -> None:
    with agent.client() as client:
        answer: httpx.Response = client.post(
            "/filesystem.Filesystem/CreateWatcher", json={"path": "/tmp", "allowNetworkMounts": allowed}
        )

    assert answer.status_code == 200
