"""The JSON Schema of a manifest, for editors: `python -m app.catalog.schema > catalog/schema.json`."""

from __future__ import annotations

import json
import sys

from app.catalog.definition import ServerDefinition


def manifest_schema() -> str:
    """JSON Schema 2020-12 as text, the same for the same classes."""
    schema = ServerDefinition.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "MCP server"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(manifest_schema())
