"""Makes sure that the packages and images of a sandbox's MCP servers are there before the servers start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.catalog.package import Package
from app.concurrency import all_of
from app.engines.builds import ImagePullError
from app.packages import PackageInstallError, PackageLockError, PackageStore
from app.sandboxes.image_pulls import ImagePulls

FETCH_WAIT_S = 60.0
"""How long a sandbox waits for what is fetched for the first time. It goes on being fetched after that."""

Progress = Callable[[str, str], None]
"""Takes a server's key and how far it is."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Prepared:
    images: dict[str, str] = field(default_factory=dict)
    """Image -> the name to run exactly it by."""
    failures: dict[str, str] = field(default_factory=dict)
    """Server key -> what went wrong."""


async def prepare_servers(
    store: PackageStore,
    pulls: ImagePulls,
    progress: Progress,
    *,
    packages: Mapping[str, Package],
    images: Mapping[str, Iterable[str]],
    wait_s: float = FETCH_WAIT_S,
) -> Prepared:
    """Install and pull what is absent of what servers need, by their keys; side by side. Raises: EngineError."""
    prepared = Prepared()
    work: list[Coroutine[Any, Any, None]] = [
        _install(store, key, package, prepared, progress, wait_s) for key, package in packages.items()
    ]
    work += [_pull(pulls, key, one, prepared, progress, wait_s) for key, some in images.items() for one in some]
    await all_of(work)
    return prepared


async def _install(
    store: PackageStore, key: str, package: Package, prepared: Prepared, progress: Progress, wait_s: float
) -> None:
    last = _Last("it has not begun yet")

    def report(line: str) -> None:
        last.line = line
        progress(key, f"is being installed: {line}")
        _log.info("package_installing", server=key, package=str(package), line=line)

    try:
        async with asyncio.timeout(wait_s):
            await store.ensure(key, package, report)
    except TimeoutError:
        prepared.failures[key] = (
            f"MCP server {key!r} needs {package}, which is still being installed (last: {last.line}). Try again in a"
            f" moment; `sandgate catalog install {key}` does it beforehand"
        )
    except (PackageInstallError, PackageLockError) as error:
        _log.warning("package_not_installed", server=key, package=str(package), reason=str(error))
        prepared.failures[key] = str(error)


async def _pull(pulls: ImagePulls, key: str, image: str, prepared: Prepared, progress: Progress, wait_s: float) -> None:
    last = _Last("it has not begun yet")

    def report(line: str) -> None:
        last.line = line
        progress(key, f"waits for image {image}: {line}")

    try:
        async with asyncio.timeout(wait_s):
            prepared.images[image] = await pulls.ensure(image, report)
    except TimeoutError:
        prepared.failures[key] = (
            f"MCP server {key!r} needs the image {image}, which is still being pulled ({last.line}). Try again in"
            " a moment"
        )
    except ImagePullError as error:
        _log.warning("image_not_pulled", server=key, image=image, reason=str(error))
        prepared.failures[key] = (
            f"MCP server {key!r} needs the image {image}, which is not on the container engine: {error}"
        )


@dataclass(slots=True)
class _Last:
    line: str
