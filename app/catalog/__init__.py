"""Which MCP servers there are, and what it takes to run one: reading, key mapping and templating of definitions.

Pure but for `Catalog.load`, which reads files, and for imported catalogs: `importing` fetches them and `sources` keeps
them in the database. Knows no container engine and no sandbox.
"""

from app.catalog.catalog import Catalog
from app.catalog.container_tools import CallError, CallVolume, ContainerTool, plan_call
from app.catalog.custom import is_custom_key, render_custom
from app.catalog.definition import Capability, Placement, ServerDefinition
from app.catalog.description import describe, describe_whole
from app.catalog.errors import CatalogError, OptionError
from app.catalog.fingerprint import list_fingerprint
from app.catalog.inline import is_inline, render_inline
from app.catalog.objections import objections_of
from app.catalog.rendering import ContainerToolsRun, ImageRun, PackageRun, RemoteRun, RenderedServer, render

__all__ = [
    "CallError",
    "CallVolume",
    "Capability",
    "Catalog",
    "CatalogError",
    "ContainerTool",
    "ContainerToolsRun",
    "ImageRun",
    "OptionError",
    "PackageRun",
    "Placement",
    "RemoteRun",
    "RenderedServer",
    "ServerDefinition",
    "describe",
    "describe_whole",
    "is_custom_key",
    "is_inline",
    "list_fingerprint",
    "objections_of",
    "plan_call",
    "render",
    "render_custom",
    "render_inline",
]
