"""Recognises the format of a document and reads every entry of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from app.catalog.definition import ServerDefinition
from app.catalog.documents import parse_document
from app.catalog.errors import CatalogError
from app.catalog.formats import client_config, docker_catalog, docker_registry, mcp_registry, own_manifest
from app.catalog.formats.reading import Format, Refusal, read_entries

READER_REVISION = 3
"""Raised when the same document comes to give other definitions."""


@dataclass(frozen=True, slots=True)
class ReadCatalog:
    format: str
    title: str | None
    """What the document calls itself."""
    definitions: tuple[ServerDefinition, ...]
    """In the order of the document; no name twice."""
    refused: tuple[Refusal, ...]
    """Every reason; an entry may have several."""


_FORMATS = (
    Format(
        name="docker-image-label",
        recognises=lambda document: any(True for _ in docker_catalog.labelled_images(document)),
        entries=docker_catalog.labelled_images,
        manifest_of=docker_catalog.manifest_of,
    ),
    Format(
        name="mcp-registry",
        recognises=mcp_registry.recognises,
        entries=mcp_registry.entries_of,
        manifest_of=mcp_registry.manifest_of,
    ),
    Format(
        name="docker-catalog",
        recognises=docker_catalog.is_catalog,
        entries=docker_catalog.entries_of,
        manifest_of=docker_catalog.manifest_of,
        title_of=lambda document: document.get("displayName") or document.get("title") or document.get("name"),
    ),
    Format(
        name="litellm",
        recognises=lambda document: isinstance(document, Mapping) and isinstance(document.get("mcp_servers"), Mapping),
        entries=lambda document: ((str(name), entry) for name, entry in document["mcp_servers"].items()),
        manifest_of=client_config.litellm_manifest_of,
    ),
    Format(
        name="mcp-servers",
        recognises=client_config.recognises,
        entries=client_config.entries_of,
        manifest_of=client_config.manifest_of,
    ),
    Format(
        name="docker-registry-entry",
        recognises=docker_registry.recognises,
        entries=lambda document: [(str(document["name"]), document)],
        manifest_of=docker_registry.manifest_of,
    ),
    Format(
        name="sandgate",
        recognises=own_manifest.recognises,
        entries=lambda document: [(str(document["name"]), document)],
        manifest_of=own_manifest.manifest_of,
    ),
    Format(
        name="docker-server",
        recognises=docker_catalog.is_tile,
        entries=lambda document: [(str(document["name"]), {"type": "server", **document})],
        manifest_of=docker_catalog.manifest_of,
    ),
)
"""In the order in which they are tried: the more telling first."""


def read_document(text: bytes, *, origin: str) -> ReadCatalog:
    """`origin` is what errors call the document. Raises: CatalogError if it is none of the formats as a whole."""
    document = parse_document(text, origin=origin)
    for format in _FORMATS:
        if format.recognises(document):
            return _read(format, document, origin)
    raise CatalogError(
        [
            f"{origin}: is no catalog of a known format. Known are: Docker's catalog (registry:), its server.yaml,"
            " image labels and single servers; the MCP registry's server.json and pages of it; mcpServers or servers"
            " of an MCP client; LiteLLM's mcp_servers; and a manifest of Sandgate"
        ]
    )


_MOST_ENTRIES = 10_000
"""Thirty times what the largest published catalogs hold. Every start puts all of them together again."""


def _read(format: Format, document: object, origin: str) -> ReadCatalog:
    definitions: dict[str, ServerDefinition] = {}
    refused: list[Refusal] = []
    entries = list(itertools.islice(format.entries(document), _MOST_ENTRIES + 1))
    if len(entries) > _MOST_ENTRIES:
        raise CatalogError([f"{origin}: has more than {_MOST_ENTRIES} entries"])
    for outcome in read_entries(entries, format.manifest_of):
        if isinstance(outcome, Refusal):
            refused.append(outcome)
        elif outcome.name in definitions:
            refused.append(Refusal(outcome.name, "name", "an earlier entry of the document has this name"))
        else:
            definitions[outcome.name] = outcome
    title = format.title_of(document)
    return ReadCatalog(format.name, str(title) if title else None, tuple(definitions.values()), tuple(refused))
