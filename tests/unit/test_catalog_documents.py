"""Documents that strangers wrote to hold up or to end whoever reads them. A process of its own reads the worst."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from app.catalog.documents import parse_document
from app.catalog.errors import CatalogError
from app.catalog.formats import read_document
from tests.waiting import BOUND_S

_READ = """
import sys
from app.catalog.errors import CatalogError
from app.catalog.formats import read_document
try:
    print(read_document(sys.stdin.buffer.read(), origin="it"))
except CatalogError as error:
    print(error)
"""

_MANY = 200_000


def told_of(document: bytes) -> str:
    """What a process that reads the document says of it."""
    reader = subprocess.run(
        [sys.executable, "-c", _READ], input=document, capture_output=True, timeout=2 * BOUND_S, check=True
    )
    return reader.stdout.decode()


def merged_again_and_again(times: int) -> bytes:
    lines = [f"l{number}: &l{number} {{<<: [*l{number - 1}, *l{number - 1}]}}" for number in range(1, times)]
    return "\n".join(["l0: &l0 {a: 1}", *lines]).encode()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"[" * _MANY, "more than 100 deep"),
        (b"- " * _MANY, "more than 100 deep"),
        (b"{a: " * _MANY, "more than 100 deep"),
        (merged_again_and_again(60), "keys into mappings with <<"),
        (b"big: &big {" + b",".join(b"k%d: 1" % n for n in range(9_000)) + b"}\na: [" + b"{<<: *big}," * 20_000 + b"]",
         "keys into mappings with <<"),
        (b"[" + b"/* " * _MANY, "neither YAML nor JSON"),
        (b'["' + b'\\"' * _MANY, "neither YAML nor JSON"),
        (b'["' + b'\\"' * _MANY + b"\\", "neither YAML nor JSON"),
        (json.dumps({"mcpServers": {"a": {"command": "npx", "args": ["x@1.0.0", "{" * _MANY]}}}).encode(),
         "name='a'"),
        (json.dumps({"mcpServers": {"a": {"command": "npx", "args": ["x@1.0.0", "${A:-" * _MANY]}}}).encode(),
         "name='a'"),
        (json.dumps({"mcpServers": {f"s{n}": {"url": "https://a.example"} for n in range(10_001)}}).encode(),
         "more than 10000 entries"),
    ],
    ids=["lists", "dashes", "maps", "merges", "wide merges", "comments", "quotes", "last backslash", "braces",
         "defaults", "entries"],
)  # fmt: skip
def test_a_hostile_document_is_read_or_refused_in_time(document: bytes, reason: str) -> None:
    assert reason in told_of(document)


@pytest.mark.parametrize(
    "value",
    ["!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!timestamp 2001-99-99", "1" * 5_000, str(2**64)],
)
def test_a_value_that_is_not_what_it_claims_is_told_as_such(value: str) -> None:
    with pytest.raises(CatalogError, match="neither YAML nor JSON"):
        parse_document(f"registry: {{a: {value}}}".encode(), origin="it")


def test_merged_keys_comments_and_trailing_commas_are_read() -> None:
    assert parse_document(b"base: &base {a: 1}\nx: {<<: *base, b: 2}", origin="it") == {
        "base": {"a": 1},
        "x": {"a": 1, "b": 2},
    }
    text = b'{"a": "// no \\" comment /* either, ]", /* one */ "b": [1, 2, ], // two\n}'
    assert parse_document(text, origin="it") == {"a": '// no " comment /* either, ]', "b": [1, 2]}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"url": "https://[bad"}, ""),
        ({"command": "npx", "args": ["x"], "env": {"A": "b"}, "description": 5}, "description"),
    ],
)
def test_a_bad_entry_stops_no_other(entry: dict[str, object], field: str) -> None:
    document = {"mcpServers": {"bad": entry, "good": {"url": "https://good.example/mcp"}}}
    read = read_document(json.dumps(document).encode(), origin="it")
    assert [definition.name for definition in read.definitions] == ["good"]
    assert [(refusal.entry, refusal.field) for refusal in read.refused] == [("bad", field)]


@pytest.mark.parametrize(
    "schema", [{"minLength": -1}, {"enum": "x"}, {"type": "array", "items": {"type": "string", "maxItems": -2}}]
)
def test_a_config_that_is_no_json_schema_is_refused_with_its_entry(schema: dict[str, object]) -> None:
    config = {"name": "a", "type": "object", "properties": {"x": {"type": "string", **schema}}}
    document = {"registry": {"a": {"title": "a", "image": "example/a", "config": [config]}}}
    read = read_document(json.dumps(document).encode(), origin="it")
    assert read.definitions == ()
    assert [refusal.entry for refusal in read.refused] == ["a"]
