"""Reads the catalogs of others: which format a document has is seen from its content. Pure."""

from app.catalog.formats.document import ReadCatalog, read_document
from app.catalog.formats.reading import Refusal

__all__ = ["ReadCatalog", "Refusal", "read_document"]
