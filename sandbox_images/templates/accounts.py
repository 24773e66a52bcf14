"""Making an account in any Linux image: useradd is not everywhere, and the programs that are differ."""

import grp
import os
import pwd
import re
import shutil
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_FIRST_UID = 1000


class UnknownAccountError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"unauthenticated: invalid username: '{name}'")


def find(name: str) -> pwd.struct_passwd:
    """By name or number. Raises: UnknownAccountError."""
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError, OverflowError):
        raise UnknownAccountError(name) from None


def make(name: str) -> pwd.struct_passwd:
    """The account of that name, made with a group and a home of its own if it is missing.

    Raises: UnknownAccountError for a name that no account can have.
    """
    try:
        return find(name)
    except UnknownAccountError:
        if not _NAME.fullmatch(name):
            raise
    uid = _free({account.pw_uid for account in pwd.getpwall()} | {group.gr_gid for group in grp.getgrall()})
    home = f"/home/{name}"
    if all(group.gr_name != name for group in grp.getgrall()):
        _append("/etc/group", f"{name}:x:{uid}:")
    gid = grp.getgrnam(name).gr_gid
    _append("/etc/passwd", f"{name}:x:{uid}:{gid}::{home}:/bin/bash")
    if Path("/etc/shadow").exists():
        _append("/etc/shadow", f"{name}:*:19000:0:99999:7:::")  # no password fits
    if not Path(home).exists():
        skeleton = Path("/etc/skel")
        if skeleton.is_dir():
            shutil.copytree(skeleton, home, symlinks=True)
        else:
            Path(home).mkdir(parents=True)
        Path(home).chmod(0o755)
    own(home, uid, gid)
    return find(name)


def own(path: str, uid: int, gid: int) -> None:
    """Give a file or a folder with all that is in it to somebody. Links are not followed."""
    os.chown(path, uid, gid, follow_symlinks=False)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(os.path.join(folder, name), uid, gid, follow_symlinks=False)


def _free(taken: set[int]) -> int:
    return next(number for number in range(_FIRST_UID, 60_000) if number not in taken)


def _append(file: str, line: str) -> None:
    """A line of its own, also behind one that lacks its end."""
    content = Path(file).read_text() if Path(file).exists() else ""
    with open(file, "a") as out:
        out.write(("" if content.endswith("\n") or not content else "\n") + line + "\n")
