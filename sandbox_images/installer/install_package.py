"""Installs one package into the store, in a container of its own; started by `app/packages`.

    /run/sandgate/package.json    what to install
    /run/sandgate/lock/           the files of its lock; absent: the dependencies are resolved now
    /opt/mcp-store/<digest>       where it is built and where sandboxes find it: a virtual environment knows its path
    /mnt/store                    the store, as a volume

What the package brings along may run while it is built, so that happens as `user`, who can write to nothing but the
environment, where root writes nothing. Afterwards every process of that user is ended, and root copies the result into
the store, where equal files are one file. What is in the store is complete and never changes: it appears by a rename.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

REQUEST = Path("/run/sandgate/package.json")
LOCK = Path("/run/sandgate/lock")
WRITTEN = Path("/run/sandgate/written")
STORE = Path("/mnt/store")
SEEN_AS = Path("/opt/mcp-store")
BUILDER = 1000
"""uid and gid of `user` in the sandbox images."""
KEPT_LOCK = ".sandgate-lock"
"""Folder of an installation with the lock that it was made from."""
MOST_BYTES = 4 * 1024**3
LEFT_BEHIND_S = 2 * 3600
"""A half-copied installation of this age has lost the container that made it."""
WHEEL_PLATFORM = re.compile(r"any|(many)?linux.*_(x86_64|aarch64)")


class InstallFailed(Exception):  # noqa: N818 - named for the fact
    """The message is for a person; what the package manager printed stands above it."""


def main() -> None:
    request = json.loads(REQUEST.read_text())
    digest = request["digest"]
    STORE.parent.chmod(0o700)  # no way in for `user`, whatever the modes inside
    if (STORE / ".installed" / f"{digest}.json").exists():
        say("is installed already")
        return
    environment = SEEN_AS / digest
    environment.mkdir(parents=True)
    os.chown(environment, BUILDER, BUILDER)
    builder = {"npm": NpmBuilder, "pypi": PypiBuilder}[request["registry"]](request, environment)
    if not LOCK.is_dir():
        say("resolving")
        LOCK.mkdir()
        builder.resolve()
    integrity = request["integrity"]
    if integrity and not any(integrity in file.read_text() for file in LOCK.rglob("*") if file.is_file()):
        raise InstallFailed(f"the registry's file is not the one with the hash {integrity}")
    say("installing")
    builder.install()
    subprocess.run(["sh", "-c", "kill -KILL -1"], user=BUILDER, check=False)
    say("storing")
    place(environment, digest, request)
    say("installed")


class Builder(ABC):
    def __init__(self, request: dict[str, Any], environment: Path) -> None:
        self.request = request
        self.environment = environment

    @abstractmethod
    def resolve(self) -> None:
        """Write the files of the lock."""

    @abstractmethod
    def install(self) -> None:
        """Fill the environment as the lock says."""

    def run(self, *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        """As `user`; its output goes to ours. Raises: InstallFailed, also when the environment grows too large."""
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd or self.environment,
            env=CLEAN_ENVIRONMENT | (env or {}),
            user=BUILDER,
            group=BUILDER,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
        )
        while True:
            try:
                code = process.wait(timeout=5)
                break
            except subprocess.TimeoutExpired:
                self.check_size()
        self.check_size()
        if code != 0:
            raise InstallFailed(f"{' '.join(str(part) for part in command[:3])} exited with code {code}")

    def check_size(self) -> None:
        used = sum(_size(path) for path in (self.environment, Path("/tmp")))
        if used > MOST_BYTES:
            raise InstallFailed(f"it takes more than {MOST_BYTES // 1024**2} MiB")

    def put(self, text: str, file: Path) -> None:
        """Into the environment, as `user`: what is there may be a link to somewhere else by now."""
        WRITTEN.write_text(text)
        self.run("cp", "--no-preserve=all", WRITTEN, file)

    def npm_resolve(self, folder: Path, lock: Path) -> None:
        self.run(
            "npm", "install", "--package-lock-only", "--omit-lockfile-registry-resolved", "--ignore-scripts",
            "--no-audit", "--no-fund", "--loglevel=error", cwd=folder,
        )  # fmt: skip
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(_compact_npm_lock(json.loads((folder / "package-lock.json").read_text())))

    def npm_install(self, folder: Path, lock: Path, *, scripts: bool) -> None:
        self.put(lock.read_text(), folder / "package-lock.json")
        options = [] if scripts else ["--ignore-scripts"]
        self.run("npm", "ci", "--omit=dev", *options, "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)
        # Nobody debugs in the store.
        self.run("find", folder / "node_modules", "-name", "*.map", "-type", "f", "-delete")


class NpmBuilder(Builder):
    def resolve(self) -> None:
        self.put(self.manifest(), self.environment / "package.json")
        self.npm_resolve(self.environment, LOCK / "package-lock.json")

    def install(self) -> None:
        self.put(self.manifest(), self.environment / "package.json")
        scripts = bool(self.request["installScripts"])
        self.npm_install(self.environment, LOCK / "package-lock.json", scripts=scripts)
        self.run("ln", "-sfn", "node_modules/.bin", self.environment / "bin")

    def manifest(self) -> str:
        wanted = [f"{self.request['name']}@{self.request['version']}", *self.request["additional"]]
        document = {
            "private": True,
            "dependencies": dict(_npm_requirement(text) for text in wanted),
            "overrides": dict(_npm_requirement(text) for text in self.request["constraints"]),
        }
        return json.dumps(document)


class PypiBuilder(Builder):
    def resolve(self) -> None:
        wanted = [f"{self.request['name']}=={self.request['version']}", *self.request["additional"]]
        requirements, constraints = (REQUEST.with_name(name) for name in ("requirements.in", "constraints.txt"))
        requirements.write_text("\n".join(wanted))
        constraints.write_text("\n".join(self.request["constraints"]))
        resolved = self.environment / "pylock.toml"
        # A package that asks for a pre-release by its exact version gets it; nothing else does.
        self.run(
            "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.13", "--format", "pylock.toml",
            "--prerelease", "if-necessary-or-explicit", "--constraints", constraints,
            "--output-file", resolved, requirements,
        )  # fmt: skip
        (LOCK / "requirements.txt").write_text(_requirements(tomllib.loads(resolved.read_text())))
        resolved.unlink()
        if self.request["nodeFolders"]:
            # Their package.json comes with the Python package.
            self.install_python()
            for folder, lock in self.node_folders():
                self.npm_resolve(folder, lock)

    def install(self) -> None:
        if not (self.environment / "bin").exists():
            self.install_python()
        for folder, lock in self.node_folders():
            self.npm_install(folder, lock, scripts=False)
        # Servers run under users that may not write here. The path is left out, so that a module has the same byte
        # code in every environment; Python puts it back on import. Nobody edits these files, so no start has to
        # compare them with their sources. A file that is no valid Python is its package's affair.
        self.run(
            "sh", "-c", 'python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$0" "$0/lib" || true',
            self.environment,
        )  # fmt: skip

    def install_python(self) -> None:
        self.run("uv", "venv", "--quiet", "--python", "/usr/bin/python3", "--allow-existing", self.environment)
        self.run(
            "uv", "pip", "install", "--require-hashes", "--python", self.environment / "bin" / "python",
            "--requirements", LOCK / "requirements.txt",
        )  # fmt: skip

    def node_folders(self) -> Iterator[tuple[Path, Path]]:
        """Each folder with the place of its lock."""
        for folder in self.request["nodeFolders"]:
            site_packages = next((self.environment / "lib").glob("python3.*")) / "site-packages"
            yield site_packages / folder, LOCK / folder / "package-lock.json"


CLEAN_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "HOSTNAME")},
    "HOME": "/tmp/home",
    "UV_CACHE_DIR": "/tmp/uv",
    "UV_NO_PROGRESS": "1",
    "UV_HTTP_TIMEOUT": "120",
    "UV_CONCURRENT_BUILDS": "2",
    "NPM_CONFIG_CACHE": "/tmp/npm",
    "NODE_DISABLE_COMPILE_CACHE": "1",
    # Packages that come with a browser or a model would fetch it now; what a server needs of these is in the images.
    "PUPPETEER_SKIP_DOWNLOAD": "1",
    "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1",
}


def place(environment: Path, digest: str, request: dict[str, Any]) -> None:
    """Copy the environment into the store. A container that is killed in between leaves what the next one removes."""
    pool = STORE / ".files"
    installed = STORE / ".installed"
    for directory in (pool, installed):
        directory.mkdir(exist_ok=True)
    fresh = STORE / f".new-{digest}"
    for left in STORE.glob(".new-*"):
        with suppress(FileNotFoundError):  # others that install rename theirs, and remove what is left behind too
            if left == fresh or time.time() - left.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(left, ignore_errors=left != fresh)
    shutil.rmtree(STORE / digest, ignore_errors=True)  # complete ones have a marker, and then nobody comes here
    size = _copy_tree(environment, fresh, pool)
    (fresh / KEPT_LOCK).mkdir()
    shutil.copytree(LOCK, fresh / KEPT_LOCK, dirs_exist_ok=True)
    fresh.rename(STORE / digest)
    marker = {name: request[name] for name in ("registry", "name", "version")} | {"bytes": size}
    unfinished = installed / f".{digest}"
    unfinished.write_text(json.dumps(marker))
    unfinished.rename(installed / f"{digest}.json")


def _copy_tree(source: Path, target: Path, pool: Path) -> int:
    """Files, directories and links only, owned by root, writable by nobody else. Gives the bytes of its files."""
    target.mkdir(mode=0o755)
    size = 0
    with os.scandir(source) as entries:
        for entry in entries:
            destination = target / entry.name
            if entry.is_symlink():
                destination.symlink_to(os.readlink(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                size += _copy_tree(Path(entry.path), destination, pool)
            elif entry.is_file(follow_symlinks=False):
                size += entry.stat(follow_symlinks=False).st_size
                _link_file(Path(entry.path), destination, pool)
    return size


def _link_file(source: Path, destination: Path, pool: Path) -> None:
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
        name = hashlib.file_digest(file, "sha256").hexdigest()
        pooled = pool / name[:2] / f"{name[2:]}{'-x' if executable else ''}"
        try:
            os.link(pooled, destination)
            return
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
        file.seek(0)
        with destination.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        destination.chmod(0o555 if executable else 0o444)
    pooled.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):  # another installer was faster, or the file has all the names it can have
        os.link(destination, pooled)


def _npm_requirement(text: str) -> tuple[str, str]:
    """`@scope/name@range` -> name and range."""
    name, _, wanted = text.rpartition("@")
    return (name, wanted) if name else (text, "*")


def _compact_npm_lock(document: dict[str, Any]) -> str:
    """What `npm ci` needs of a lock file, one line a package."""
    unneeded = ("license", "engines", "funding", "deprecated")
    packages = {
        path: {field: value for field, value in package.items() if field not in unneeded}
        for path, package in document["packages"].items()
    }
    lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(package)}" for path, package in packages.items())
    return f'{{"name": "installation", "lockfileVersion": 3, "requires": true, "packages": {{\n{lines}\n}}}}\n'


def _requirements(document: dict[str, Any]) -> str:
    """Of a pylock.toml (PEP 751): pinned requirements with the hashes of the files that Linux can use."""
    lines: list[str] = []
    for package in document["packages"]:
        wheels = [wheel for wheel in package.get("wheels", ()) if _is_usable(_file_name(wheel))]
        files = wheels or [file for file in (package.get("sdist"),) if file]
        if not files:
            if "marker" in package:  # for another system
                continue
            raise InstallFailed(f"{package['name']} {package['version']} has no file for Python 3.13 on Linux")
        marker = f" ; {package['marker']}" if "marker" in package else ""
        hashes = "".join(f" --hash=sha256:{file['hashes']['sha256']}" for file in files)
        lines.append(f"{package['name']}=={package['version']}{marker}{hashes}\n")
    return "".join(lines)


def _file_name(file: dict[str, Any]) -> str:
    return str(file.get("name") or file["url"].rpartition("/")[2].partition("#")[0])


def _is_usable(wheel: str) -> bool:
    pythons, abis, platforms = (part.split(".") for part in wheel.removesuffix(".whl").split("-")[-3:])
    return any(WHEEL_PLATFORM.fullmatch(platform) for platform in platforms) and any(
        _runs_on_python_3_13(python, abi) for python in pythons for abi in abis
    )


def _runs_on_python_3_13(python: str, abi: str) -> bool:
    if python == "cp313":
        return abi in ("cp313", "abi3", "none")
    match = re.fullmatch(r"(py|cp)3(\d*)", python)
    if match is None or int(match[2] or 0) > 13:
        return False
    return abi == "abi3" if match[1] == "cp" else abi == "none"


def _size(directory: Path) -> int:
    used = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue  # a temporary file that is gone again
            used += found.st_size // found.st_nlink
    return used


def say(what: str) -> None:
    sys.stdout.write(f"sandgate: {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        Path("/tmp/home").mkdir()
        os.chown("/tmp/home", BUILDER, BUILDER)
        main()
    except InstallFailed as failure:
        say(str(failure))
        sys.exit(1)
    except OSError as error:
        say(f"{error.strerror or error}: {error.filename or ''}")
        sys.exit(28 if error.errno == errno.ENOSPC else 1)
