"""The program that gives the processes of one container another kernel boot id.

A container has the boot id of its host, `/proc/sys` is read-only to it, and container runtimes mount nothing into
`/proc`. So a helper with rights that no sandbox has mounts a file over that one: it clones its own file into a mount
that belongs to no path (`open_tree`), enters the container's mount namespace and attaches it there (`move_mount`).
Nothing of the container's files is run or read. Linux 5.2 or later; see open_tree(2) and move_mount(2).
"""

from __future__ import annotations

PROGRAM = """
import ctypes, os, sys
OPEN_TREE, MOVE_MOUNT = 428, 429  # the same number on every architecture
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, AT_FDCWD, CLONE_NEWNS = 1, 4, -100, 0x20000
libc = ctypes.CDLL(None, use_errno=True)
def check(result, what):
    if result < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result
namespace = os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY)
with open("/run/boot_id", "w") as file:
    file.write(sys.argv[2] + "\\n")
os.chmod("/run/boot_id", 0o444)
tree = check(libc.syscall(OPEN_TREE, AT_FDCWD, b"/run/boot_id", OPEN_TREE_CLONE | os.O_CLOEXEC), "open_tree")
check(libc.setns(namespace, CLONE_NEWNS), "setns")
target = b"/proc/sys/kernel/random/boot_id"
check(libc.syscall(MOVE_MOUNT, tree, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH), "move_mount")
"""

CAPABILITIES = ("SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE")
"""To mount, to enter a mount namespace, and to open that of another user's process."""
