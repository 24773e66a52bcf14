"""Runs in a container of a template build, as root: one step of the template.

`step.json` beside this file says which. The folder of both is removed first of all, so that it stays in no image.
Exit code and output are those of the step's command; what cannot be done at all ends with REFUSED as exit code and the
reason as the last line.
"""

import grp
import json
import os
import posixpath
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import accounts

REFUSED = 125
READY_INTERVAL_S = 2.0
"""Between two runs of a ready command, as in E2B's builds."""
SHELL = ("/bin/bash", "-l", "-c")
_GLOB = re.compile(r"[*?\[{]")

Step = Mapping[str, Any]


class RefusedError(Exception):
    """The step cannot be done; the text says why."""


def main() -> None:
    folder = Path(__file__).parent
    step = json.loads((folder / "step.json").read_bytes())
    archive = folder / "files.tar"
    do = {"run": run, "user": make_user, "workdir": make_workdir, "path": keep_path, "start": start}
    try:
        if step["do"] == "copy":
            unpacked = folder / "files"
            unpack(archive, unpacked)
            copy(step, unpacked)
            shutil.rmtree(folder)
        else:
            shutil.rmtree(folder)
            do[step["do"]](step)
    except (RefusedError, accounts.UnknownAccountError, OSError, ValueError) as error:
        refuse(str(error))


def refuse(reason: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"{reason}\n")
    sys.stderr.flush()
    os._exit(REFUSED)


def run(step: Step) -> None:
    account = accounts.find(step["user"])
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.umask(0o022)
    enter(working_directory(step))
    environment = environment_of(step)
    os.execve(SHELL[0], (*SHELL, step["command"]), environment)


def make_user(step: Step) -> None:
    if step["name"].isdecimal():
        raise RefusedError(f"USER {step['name']}: give the name of the user instead of its number")
    accounts.make(step["name"])


def make_workdir(step: Step) -> None:
    account = accounts.find(step["user"])
    make_folders(step["path"], account.pw_uid, account.pw_gid)
    enter(step["path"])


def keep_path(step: Step) -> None:
    """Login shells, which run all commands, set PATH anew."""
    quoted = step["value"].replace("'", "'\\''")
    Path("/etc/profile.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/profile.d/sandgate-path.sh").write_text(f"export PATH='{quoted}'\n")


def start(step: Step) -> None:
    """Run the start command until the ready command succeeds; what both leave behind is thrown away."""
    account = accounts.find(step["user"])
    options: dict[str, Any] = {
        "cwd": working_directory(step),
        "env": environment_of(step),
        "stdin": subprocess.DEVNULL,
        "user": account.pw_uid,
        "group": account.pw_gid,
        "extra_groups": os.getgrouplist(account.pw_name, account.pw_gid),
        "umask": 0o022,
    }
    if not Path(options["cwd"]).is_dir():
        raise RefusedError(f"the working directory {options['cwd']} does not exist")
    started = subprocess.Popen([*SHELL, step["start"]], start_new_session=True, **options) if step["start"] else None
    give_up_at = time.monotonic() + step["deadline_s"]
    if not step["ready"]:
        check_running(started, wait_s=step["settle_s"])
        return
    while True:
        try:
            left_s = max(give_up_at - time.monotonic(), 0.1)
            code = subprocess.run([*SHELL, step["ready"]], timeout=left_s, check=False, **options).returncode
        except subprocess.TimeoutExpired:
            code = None
        check_running(started, wait_s=0)
        if code == 0:
            return
        if time.monotonic() + READY_INTERVAL_S > give_up_at:
            raise RefusedError(f"the ready command did not succeed within {step['deadline_s']} s")
        check_running(started, wait_s=READY_INTERVAL_S)


def check_running(started: "subprocess.Popen[bytes] | None", *, wait_s: float) -> None:
    """The start command may end, but only well. Raises: RefusedError."""
    if started is None:
        time.sleep(wait_s)
        return
    began = time.monotonic()
    try:
        code = started.wait(timeout=wait_s)
    except subprocess.TimeoutExpired:
        return
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise RefusedError(f"the start command ended with {how}")
    time.sleep(max(wait_s - (time.monotonic() - began), 0.0))


def unpack(archive: Path, into: Path) -> None:
    """A tar, packed with gzip or not, without anything that would lie outside of `into`."""
    into.mkdir()

    def keep_mode(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        return tarfile.tar_filter(member, path).replace(mode=member.mode & 0o7777, deep=False)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter=keep_mode)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RefusedError(f"the uploaded files cannot be unpacked: {error}") from error


def copy(step: Step, unpacked: Path) -> None:
    """As Docker's COPY: a file goes to the path or into the folder, a folder's content is merged into the folder."""
    uid, gid = owner(step["owner"] or step["user"])
    source = unpacked / strip_glob(step["source"])
    if not os.path.lexists(source):
        raise RefusedError(f"source path does not exist: {step['source']}")
    accounts.own(str(source), uid, gid)
    if step["mode"]:
        change_mode(source, int(step["mode"], 8))
    target = posixpath.join(working_directory(step), step["target"])
    if source.is_dir() and not source.is_symlink():
        make_folders(target, uid, gid)
        merge(str(source), target)
    elif target.endswith("/") or os.path.isdir(target):
        make_folders(target, uid, gid)
        place(str(source), posixpath.join(target, source.name))
    else:
        make_folders(posixpath.dirname(target), uid, gid)
        place(str(source), target)


def strip_glob(source: str) -> str:
    """The leading part of a path that holds no pattern: the SDKs match patterns and pack what they found."""
    parts = posixpath.normpath(source).split("/")
    plain = next((index for index, part in enumerate(parts) if _GLOB.search(part)), len(parts))
    return "/".join(part for part in parts[:plain] if part != "..")


def merge(source: str, target: str) -> None:
    """Folders are merged, also behind a link; anything else takes the place of what is there."""
    with os.scandir(source) as entries:
        for entry in entries:
            to = posixpath.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False) and os.path.isdir(to):
                merge(entry.path, to)
            else:
                place(entry.path, to)


def place(source: str, target: str) -> None:
    if os.path.islink(target) or os.path.isfile(target):
        os.unlink(target)
    elif os.path.isdir(target):
        raise RefusedError(f"{target} is a directory, and what is copied there is not")
    shutil.move(source, target)


def change_mode(path: Path, mode: int) -> None:
    for found in (path, *path.rglob("*")):
        if not stat.S_ISLNK(found.lstat().st_mode):
            found.chmod(mode)


def owner(text: str) -> tuple[int, int]:
    """Of `user` or `user:group`, by name or number."""
    name, _, group = text.partition(":")
    if not group:
        account = accounts.find(name)
        return account.pw_uid, account.pw_gid
    try:
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise RefusedError(f"there is no group {group!r}") from None
    return (int(name) if name.isdecimal() else accounts.find(name).pw_uid), gid


def make_folders(path: str, uid: int, gid: int) -> None:
    """Make what is missing of a path and give that to its owner. Raises: RefusedError if something is in the way."""
    missing: list[str] = []
    path = posixpath.normpath(path)
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise RefusedError(f"{path} is not a directory")
        missing.append(path)
        path = posixpath.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder, 0o755)
        os.chown(folder, uid, gid)


def working_directory(step: Step) -> str:
    directory: str = step["workdir"] or accounts.find(step["user"]).pw_dir
    return directory


def enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise RefusedError(f"cannot change to the working directory {directory}: {error.strerror}") from error


def environment_of(step: Step) -> dict[str, str]:
    account = accounts.find(step["user"])
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "SHELL": SHELL[0]}
    return {**os.environ, **own, **step["env"]}


if __name__ == "__main__":
    main()
