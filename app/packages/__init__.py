"""The packages that MCP servers come in: installed once by a job of the engine, shared read-only by all sandboxes.

Knows packages and jobs. Knows nothing of sandboxes, of credentials, and of the servers' options.
"""

from app.packages.errors import PackageInstallError, PackageLockError, PackagesInUseError
from app.packages.locks import PackageLocks
from app.packages.store import STORE_MOUNT, Installed, PackageStore

__all__ = [
    "STORE_MOUNT",
    "Installed",
    "PackageInstallError",
    "PackageLockError",
    "PackageLocks",
    "PackageStore",
    "PackagesInUseError",
]
