"""The store of installed packages: one volume of the engine, an installation a digest, never changed once it is there.

Every installation is made by a job named after its digest, so it is made once however many ask for it at the same time,
from however many processes, and goes on when those who asked are gone. The job has no credentials and nothing of ours
but the package's name and lock.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.catalog.package import STORE_PATH, Package
from app.engines.interface import Engine, File, Limits, VolumeMount
from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import EngineError, EngineOutOfSpace
from app.packages.errors import PackageInstallError, PackagesInUseError
from app.packages.locks import LockFiles, PackageLocks

STORE_MOUNT = VolumeMount(volume="mcp-store", path=STORE_PATH, read_only=True, shared=True)
"""For every container that runs package servers."""

INSTALL_TIMEOUT_S = 900
_WRITABLE = "/mnt/store"
_REMOVER = "/run/sandgate/remove_packages.py"
_INSTALLER = "/run/sandgate/install_package.py"
_LIMITS = Limits(memory_mib=3072, cpus=2.0, pids=1024)
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID")
"""What it takes to run a package's own code as somebody else, to end that, and to take over what it left."""
_OUT_OF_SPACE = 28
_TIMED_OUT = (124, 137)
_OUTPUT_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    registry: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({'npm' if self.registry == 'npm' else 'PyPI'})"


class PackageStore:
    def __init__(self, engine: Engine, *, image: str, installer: Path, locks: PackageLocks) -> None:
        """`image` has Python, Node, uv and compilers; `installer` is the program of the job."""
        self._jobs = engine.jobs
        self._image = image
        self._installer = installer
        self._locks = locks
        self._seen: set[str] = set()
        """Digests known to be installed. Nothing is removed while a container has the store; see `forget`."""

    async def is_installed(self, package: Package) -> bool:
        if package.digest not in self._seen:
            markers = await self._jobs.read_shared(STORE_MOUNT.volume, ".installed")
            self._seen.update(name.removesuffix(".json") for name in markers if not name.startswith("."))
        return package.digest in self._seen

    def forget(self) -> None:
        """Look anew when asked next: for when no container has the store, as anybody may empty it then."""
        self._seen.clear()

    async def ensure(self, key: str, package: Package, report: Report = lambda line: None) -> None:
        """Install the package of server `key` if it is absent; returns once it can be used. Safe to repeat.

        Raises: PackageInstallError, PackageLockError, EngineUnavailable, EngineOutOfSpace, ImageMissing, EngineError.
        """
        if await self.is_installed(package):
            return
        spec = await asyncio.to_thread(self._job, package, package.digest)
        while True:
            outcome = await self._jobs.run(spec, report)
            # Whoever else waited for the same job may have taken its outcome: then the store tells, or it is done anew.
            if outcome.exit_code is not None or await self.is_installed(package):
                break
        if outcome.exit_code:
            raise _failure(key, package, outcome)
        self._seen.add(package.digest)

    async def resolve(self, key: str, package: Package, report: Report = lambda line: None) -> LockFiles:
        """The lock that a package comes to now, whatever is installed of it. Nothing that is installed changes.

        Raises as `ensure`.
        """
        fresh = uuid.uuid4().hex[:20]
        spec = await asyncio.to_thread(self._job, package.model_copy(update={"lock": None}), fresh)
        outcome = await self._jobs.run(spec, report)
        if outcome.exit_code != 0:
            raise _failure(key, package, outcome)
        lock = await self._lock_in(fresh)
        await self._remove([fresh], dry_run=False)
        return lock

    async def lock_of(self, package: Package) -> LockFiles:
        """The lock that an installation was made from; empty if it is not installed."""
        return await self._lock_in(package.digest)

    async def _lock_in(self, digest: str) -> LockFiles:
        return await self._jobs.read_shared(STORE_MOUNT.volume, f"{digest}/.sandgate-lock")

    async def installed(self) -> Mapping[str, Installed]:
        """By digest."""
        markers = await self._jobs.read_shared(STORE_MOUNT.volume, ".installed")
        found = {name.removesuffix(".json"): json.loads(text) for name, text in markers.items() if name[0] != "."}
        return {
            digest: Installed(registry=marker["registry"], name=marker["name"], version=marker["version"])
            for digest, marker in found.items()
        }

    async def remove(self, digests: Iterable[str], *, dry_run: bool = False) -> int:
        """Remove these installations; gives the bytes that frees, which `dry_run` only tells. Safe to repeat.

        Nothing may run from them any more, and no store that knows them may be asked for them.
        Raises: PackagesInUseError, EngineError.
        """
        others = await self._jobs.others_using(STORE_MOUNT.volume)
        if others and not dry_run:
            raise PackagesInUseError(others)
        return await self._remove(digests, dry_run=dry_run)

    async def _remove(self, digests: Iterable[str], *, dry_run: bool) -> int:
        request = json.dumps({"digests": sorted(digests), "remove": not dry_run}).encode()
        spec = JobSpec(
            name=f"remove-{uuid.uuid4().hex}",
            image=self._image,
            command=("python3", "-I", _REMOVER),
            limits=_LIMITS,
            timeout_s=INSTALL_TIMEOUT_S,
            files=(
                File(path=_REMOVER, content=self._installer.with_name("remove_packages.py").read_bytes()),
                File(path="/run/sandgate/removal.json", content=request),
            ),
            shared={STORE_MOUNT.volume: _WRITABLE},
            capabilities=("DAC_OVERRIDE",),
        )
        outcome = await self._jobs.run(spec, lambda line: None)
        if outcome.exit_code != 0:
            raise EngineError(f"The packages could not be removed: {outcome.output.strip() or outcome.exit_code}")
        freed: int = json.loads(outcome.output.strip().splitlines()[-1])["bytes"]
        return freed

    def _job(self, package: Package, digest: str) -> JobSpec:
        """Installs a package as `digest`."""
        request = package.model_dump(mode="json", by_alias=True) | {"digest": digest}
        files = {"package.json": json.dumps(request).encode()}
        files |= {f"lock/{name}": content for name, content in (self._locks.read(package) or {}).items()}
        return JobSpec(
            name=f"install-{digest}",
            image=self._image,
            command=("python3", "-I", _INSTALLER),
            limits=_LIMITS,
            timeout_s=INSTALL_TIMEOUT_S,
            files=(
                File(path=_INSTALLER, content=self._installer.read_bytes()),
                *(File(path=f"/run/sandgate/{name}", content=content, mode=0o444) for name, content in files.items()),
            ),
            shared={STORE_MOUNT.volume: _WRITABLE},
            capabilities=_CAPABILITIES,
        )


def _failure(key: str, package: Package, outcome: JobOutcome) -> Exception:
    if outcome.exit_code == _OUT_OF_SPACE:
        return EngineOutOfSpace(f"{package} could not be installed: the engine's disk is full. Free space there.")
    *lines, last = outcome.output.strip().splitlines()[-_OUTPUT_LINES:] or [""]
    if outcome.exit_code in _TIMED_OUT:
        reason = f"it took more than {INSTALL_TIMEOUT_S} s or more memory than {_LIMITS.memory_mib} MiB"
        return PackageInstallError(key, package, reason, "\n".join([*lines, last]))
    said, _, reason = last.rpartition("sandgate: ")
    return PackageInstallError(key, package, reason, "\n".join([*lines, *filter(None, [said])]))
