"""What goes wrong with packages, for an operator or for whoever asked for the server."""

from __future__ import annotations

from collections.abc import Iterable

from app.catalog.package import Package
from app.errors import SandgateError


class PackageInstallError(SandgateError):
    """A package could not be installed. The message ends with what the installer printed last."""

    def __init__(self, key: str, package: Package, reason: str, output: str) -> None:
        lines = "".join(f"\n  | {line}" for line in output.splitlines())
        super().__init__(f"MCP server {key!r} needs {package}, which could not be installed: {reason}.{lines}")
        self.key = key
        self.package = package
        self.output = output


class PackagesInUseError(SandgateError):
    """Sandboxes of other homes may run what is in the store."""

    def __init__(self, installations: Iterable[str]) -> None:
        super().__init__(
            f"Other homes have sandboxes on this engine, which may use any package: {', '.join(sorted(installations))}."
            " Stop those first."
        )


class PackageLockError(SandgateError):
    """The lock of a package is not there, or is not the one its manifest names."""
