"""Removes installations from the store: the program of a job, with the store at /mnt/store.

/run/sandgate/removal.json holds `{"digests": [...], "remove": true}`; if that is false nothing is changed. The last
line of what is printed is `{"bytes": n}`: what that frees on disk, files that others have too not counted. Standard
library only.
"""

import json
import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

REQUEST = Path("/run/sandgate/removal.json")
STORE = Path("/mnt/store")


def main() -> None:
    request = json.loads(REQUEST.read_text())
    digests = [digest for digest in request["digests"] if (STORE / digest).is_dir()]
    freed = size_of(digests)
    if request["remove"]:
        for digest in digests:
            remove(digest)
        sweep_pool()
    sys.stdout.write(json.dumps({"bytes": freed}) + "\n")


def size_of(digests: list[str]) -> int:
    """Of the files that nothing but these installations has, the pool of all files aside."""
    names: Counter[int] = Counter()
    files: dict[int, os.stat_result] = {}
    for found in (one for digest in digests for one in regular_files(STORE / digest)):
        names[found.st_ino] += 1
        files[found.st_ino] = found
    pooled = {found.st_ino for found in regular_files(STORE / ".files")}
    return sum(found.st_size for inode, found in files.items() if found.st_nlink == names[inode] + (inode in pooled))


def remove(digest: str) -> None:
    """The marker goes first: from then on it counts as not installed, whatever is left of it."""
    (STORE / ".installed" / f"{digest}.json").unlink(missing_ok=True)
    gone = STORE / f".new-removed-{digest}"  # what is left of it after a kill, later installers remove
    (STORE / digest).rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep_pool() -> None:
    """Files that no installation has any more. An installer that just found one there still has what it took."""
    for folder in (STORE / ".files").glob("??"):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # another removal was faster
                if file.stat().st_nlink == 1:
                    file.unlink()


def regular_files(directory: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(found.st_mode):
                    yield found


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{error.strerror or error}: {error.filename or ''}")
