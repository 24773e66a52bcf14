"""Lock files of packages: each names every file that is installed by its hash.

    <directory>/npm/<name>/package-lock.json
    <directory>/pypi/<name>/requirements.txt

A manifest names its lock by a hash over all its files, so an entry that was verified is installed as it was verified.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.catalog.package import Package
from app.packages.errors import PackageLockError

LockFiles = Mapping[str, bytes]
"""Content by path below the lock's folder."""


class PackageLocks:
    def __init__(self, directories: Sequence[Path]) -> None:
        """The locks of later directories come first."""
        self._directories = directories

    def read(self, package: Package) -> LockFiles | None:
        """None for a package that names no lock. Raises: PackageLockError."""
        if package.lock is None:
            return None
        found = False
        for directory in reversed(self._directories):
            folder = _folder(directory, package)
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
            if files and digest_of(files) == package.lock:
                return files
            found = found or bool(files)
        problem = "is not the one that its manifest names" if found else "is missing"
        raise PackageLockError(
            f"The lock of {package} {problem}. `sandgate catalog lock` makes it anew; or leave `lock` out of the"
            " manifest, and its dependencies are resolved when it is installed."
        )

    def write(self, package: Package, files: LockFiles) -> str:
        """Keep a lock in the last directory, instead of an earlier one. Gives what the manifest has to name it by."""
        folder = _folder(self._directories[-1], package)
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return digest_of(files)


def digest_of(files: LockFiles) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return f"sha256:{digest.hexdigest()}"


def _folder(directory: Path, package: Package) -> Path:
    return directory / package.registry / package.name
