"""Makes sure that the packages of a sandbox's MCP servers are installed before the servers start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog

from app.catalog.package import Package
from app.packages import PackageInstallError, PackageLockError, PackageStore
from app.sandboxes.models import ServerStatus

INSTALL_WAIT_S = 60.0
"""How long a sandbox waits for packages that are installed for the first time. They go on being installed after it."""

_log = structlog.get_logger()


async def install_packages(store: PackageStore, packages: Mapping[str, Package]) -> dict[str, str]:
    """Install what is absent, side by side, by server key. Gives what went wrong, by server key.

    Raises: EngineError.
    """
    if not packages:
        return {}
    failures: dict[str, str] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for key, package in packages.items():
                group.create_task(_install(store, key, package, failures), name=f"install {package}")
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return failures
    raise first


def with_failures(servers: Iterable[ServerStatus], failures: Mapping[str, str]) -> tuple[ServerStatus, ...]:
    """The states of servers; those without their package say why they have none."""
    return tuple(replace(s, message=failures[s.name]) if s.name in failures else s for s in servers)


async def _install(store: PackageStore, key: str, package: Package, failures: dict[str, str]) -> None:
    last = "it has not begun yet"

    def report(line: str) -> None:
        nonlocal last
        last = line
        _log.info("package_installing", server=key, package=str(package), line=line)

    try:
        async with asyncio.timeout(INSTALL_WAIT_S):
            await store.ensure(key, package, report)
    except TimeoutError:
        failures[key] = (
            f"MCP server {key!r} needs {package}, which is still being installed (last: {last}). Try again in a moment;"
            f" `sandgate catalog install {key}` does it beforehand"
        )
    except (PackageInstallError, PackageLockError) as error:
        _log.warning("package_not_installed", server=key, package=str(package), reason=str(error))
        failures[key] = str(error)
