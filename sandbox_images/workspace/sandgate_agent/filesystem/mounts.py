"""Which file systems are on a network or another program's: inotify(7) misses what happens on the other side."""

import os

_NETWORK_TYPES = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse"})

_MOUNT_TABLE = "/proc/self/mountinfo"


def is_on_network_mount(path: str) -> bool:
    """Whether an existing path is on NFS, SMB or FUSE. Raises: OSError."""
    device = os.stat(path).st_dev
    if device == os.stat("/").st_dev:
        return False  # a rootless engine may build the whole sandbox on FUSE, and there is no other side to it
    with open(_MOUNT_TABLE, encoding="utf-8", errors="surrogateescape") as table:
        return f"{os.major(device)}:{os.minor(device)}" in network_devices(table.read())


def network_devices(mount_table: str) -> set[str]:
    """`major:minor` of the network mounts in the text of /proc/<pid>/mountinfo (proc_pid_mountinfo(5))."""
    devices = set()
    for line in mount_table.splitlines():
        mount, _, file_system = line.partition(" - ")
        kind = file_system.partition(" ")[0]
        if kind in _NETWORK_TYPES or kind.startswith("fuse."):
            devices.add(mount.split()[2])
    return devices
