"""A package of npm or PyPI that an MCP server comes in: what is installed, by which rules, and where that ends up."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import StringConstraints

from app.catalog.manifest_parts import Items, ManifestPart, Text

STORE_PATH = "/opt/mcp-store"
"""Where every sandbox sees the installed packages, read-only."""
_LAYOUT = 1
"""Raised when the same rules come to give another installation, so that older ones are not taken for it."""


class Package(ManifestPart):
    """A package of a registry, installed beforehand: starting the server downloads nothing."""

    registry: Literal["npm", "pypi"]
    name: Annotated[str, StringConstraints(pattern=r"^(@[A-Za-z0-9._-]+/)?[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!-]*$")]
    """Exactly one version, never a range."""
    constraints: Items[Text] = ()
    """Bounds on other packages that this version needs to work: `mcp<2` (PyPI), `@modelcontextprotocol/sdk@1` (npm)."""
    additional: Items[Text] = ()
    """Requirements to install beside it, which it uses and does not ask for."""
    install_scripts: bool = False
    """npm: whether the install scripts of it and its dependencies are run; not needed but for some native modules."""
    node_folders: Items[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*$")]] = ()
    """PyPI: folders of installed modules with a package.json of their own, whose dependencies are installed too."""
    integrity: (
        Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|sha512-[A-Za-z0-9+/]+={0,2})$")] | None
    ) = None
    """Hash of the package file as its registry's lock files write it; an installation without it is refused."""
    lock: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    """Hash of the lock in `catalog/locks`, which names each file that is installed by its hash. Without one, the
    dependencies are resolved at the first installation and kept as they are from then on."""

    @property
    def digest(self) -> str:
        """Tells installations apart: everything that decides what is installed, in 20 hexadecimal digits."""
        rules = self.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(json.dumps([_LAYOUT, rules], sort_keys=True).encode()).hexdigest()[:20]

    @property
    def directory(self) -> str:
        """The installation, as sandboxes see it."""
        return f"{STORE_PATH}/{self.digest}"

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({'npm' if self.registry == 'npm' else 'PyPI'})"
