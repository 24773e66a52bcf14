"""Imported catalogs in the database: what several control planes see, what pins and refreshes do."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import Row, select, text, update

from app.catalog import Catalog
from app.catalog.formats import ReadCatalog
from app.catalog.importing import CatalogImporter
from app.catalog.sources import Source, SourceStore, digest_of
from app.database import Database
from app.database.tables import catalogs
from app.errors import Conflict, InvalidRequest, NotFound
from app.secrets.at_rest import check_stored_secrets, renew_stored_secrets
from app.vault import Vault
from tests.in_process import Clock
from tests.waiting import BOUND_S

ImporterOf: TypeAlias = Callable[..., CatalogImporter]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "encryption-key")


@pytest.fixture
def importer_of(vault: Vault) -> ImporterOf:
    def make(database: Database, catalog: Catalog, **more: Any) -> CatalogImporter:
        return CatalogImporter(catalog, SourceStore(database, vault), now=Clock(), **more)

    return make


def document(*names: str, **tile: Any) -> bytes:
    return json.dumps(
        {"registry": {name: {"title": name, "image": f"example/{name}", **tile} for name in names}}
    ).encode()


def keys(catalog: Catalog) -> list[str]:
    return [definition.key for definition in catalog]


async def test_what_one_control_plane_imports_all_of_them_have(database: Database, importer_of: ImporterOf) -> None:
    here, there = Catalog([]), Catalog([])
    one, other = importer_of(database, here), importer_of(database, there)
    report = await one.import_document(document("a", "b"), name="first")
    assert (report.servers, report.change.added) == (2, ("a", "b"))
    assert keys(here) == ["a", "b"]
    await other.reload()
    assert keys(there) == ["a", "b"]
    await other.remove("first")
    await one.reload()
    assert (keys(here), keys(there)) == ([], [])


async def test_a_control_plane_notices_what_others_import(database: Database, importer_of: ImporterOf) -> None:
    catalog = Catalog([])
    watching = asyncio.create_task(importer_of(database, catalog, watch_interval_s=0.01).watch())
    try:
        await importer_of(database, Catalog([])).import_document(document("a"), name="first")
        async with asyncio.timeout(BOUND_S):
            while catalog.find("a") is None:
                await asyncio.sleep(0.005)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_importing_again_replaces_a_catalog_where_it_stands(database: Database, importer_of: ImporterOf) -> None:
    importer = importer_of(database, catalog := Catalog([]))
    await importer.import_document(document("a", "b"), name="first")
    await importer.import_document(document("b", user="second"), name="second")
    report = await importer.import_document(document("b", "c", user="first"), name="first")
    assert [source.name for source in await importer.sources()] == ["first", "second"]
    assert (report.change.added, report.change.removed) == (("c",), ("a",))
    assert report.change.changed == {"b": ("user",)}
    assert {item.name: item.by for item in report.shadowed} == {"b": "second"}
    found = catalog.find("b")
    assert found is not None
    assert found.user == "second"


async def test_a_pinned_catalog_keeps_its_document_until_it_is_unpinned(
    database: Database, importer_of: ImporterOf, tmp_path: Path
) -> None:
    importer = importer_of(database, catalog := Catalog([]))
    file = tmp_path / "mine.json"
    file.write_bytes(document("a"))
    source = (await importer.import_origin(str(file), by_operator=True)).source
    assert (source.name, source.digest) == ("mine", digest_of(document("a")))
    await importer.pin("mine")
    file.write_bytes(document("a", "b"))
    digest, change = await importer.diff("mine", by_operator=True)
    assert (digest, change.added) == (digest_of(document("a", "b")), ("b",))
    with pytest.raises(Conflict, match=r"is pinned to sha256:\w+\. Nothing was changed"):
        await importer.refresh("mine", by_operator=True)
    for asked in (None, digest_of(document("c"))):
        with pytest.raises(Conflict, match="catalog mine is pinned"):
            await importer.import_document(document("c"), name="mine", digest=asked)
    assert keys(catalog) == ["a"]
    await importer.unpin("mine")
    await importer.refresh("mine", by_operator=True)
    assert keys(catalog) == ["a", "b"]


async def test_a_pin_that_is_set_or_taken_off_while_a_document_is_read_counts(database: Database, vault: Vault) -> None:
    class Meanwhile(SourceStore):
        """Somebody else is faster than whoever puts a document."""

        async def put(self, source: Source, document: bytes, read: ReadCatalog) -> Source:
            await act()
            return await super().put(source, document, read)

    async def nothing() -> None:
        return

    act: Callable[[], Awaitable[object]] = nothing
    importer = CatalogImporter(catalog := Catalog([]), Meanwhile(database, vault), now=Clock())
    other = CatalogImporter(Catalog([]), SourceStore(database, vault), now=Clock())
    await importer.import_document(document("a"), name="first")
    act = partial(other.pin, "first")
    with pytest.raises(Conflict, match="catalog first is pinned"):
        await importer.import_document(document("b"), name="first")
    assert keys(catalog) == ["a"]
    act = nothing
    assert (await importer.import_document(document("a"), name="first")).source.pinned_digest is not None
    act = partial(other.unpin, "first")
    assert (await importer.import_document(document("a"), name="first")).source.pinned_digest is None
    assert keys(catalog) == ["a"]


async def test_a_catalog_from_elsewhere_does_not_take_the_place_of_one_that_only_happens_to_have_its_name(
    database: Database, importer_of: ImporterOf, tmp_path: Path
) -> None:
    importer = importer_of(database, catalog := Catalog([]))
    for client in ("cursor", "vscode"):
        (tmp_path / client).mkdir()
        servers = {"mcpServers": {client: {"url": f"https://{client}.example/mcp"}}}
        (tmp_path / client / "mcp.json").write_text(json.dumps(servers))
    here, there = (str(tmp_path / client / "mcp.json") for client in ("cursor", "vscode"))
    for _ in range(2):
        assert (await importer.import_origin(here, by_operator=True)).source.name == "mcp-servers"
    with pytest.raises(Conflict, match=f"catalog mcp-servers already, from {here}"):
        await importer.import_origin(there, by_operator=True)
    assert keys(catalog) == ["cursor"]
    report = await importer.import_origin(there, by_operator=True, name="mcp-servers")
    assert report.change.removed == ("cursor",)


async def test_a_digest_that_was_asked_for_is_checked_and_pins(database: Database, importer_of: ImporterOf) -> None:
    importer = importer_of(database, Catalog([]))
    with pytest.raises(Conflict, match="sha256:0 was asked for"):
        await importer.import_document(document("a"), name="first", digest="sha256:0")
    assert await importer.sources() == ()
    report = await importer.import_document(document("a"), name="first", digest=digest_of(document("a")))
    assert report.source.pinned_digest == report.source.digest
    with pytest.raises(Conflict, match="has the digest"):
        await importer.pin("first", "sha256:0")


async def test_what_an_older_version_read_is_read_again(database: Database, importer_of: ImporterOf) -> None:
    await importer_of(database, Catalog([])).import_document(document("a", volumes=["/etc:/etc"]), name="first")
    async with database.transaction() as connection:
        await connection.execute(update(catalogs).values(reader_revision=0, manifests=b"", refused=[]))
    importer = importer_of(database, catalog := Catalog([]))
    await importer.reload()
    found = catalog.find("a")
    assert found is not None
    assert found.host_paths == ("/etc:/etc",)
    again = Catalog([])
    await importer_of(database, again).reload()
    assert keys(again) == ["a"]


MCP_JSON = json.dumps(
    {"mcpServers": {"acme": {"command": "npx", "args": ["acme@1.0.0"], "env": {"LOGIN": "hunter2"}}}}
).encode()


async def stored(database: Database) -> Row[Any]:
    async with database.transaction() as connection:
        return (await connection.execute(select(catalogs))).one()


async def test_a_document_is_encrypted_and_can_be_put_under_a_new_key(
    database: Database, importer_of: ImporterOf, vault: Vault
) -> None:
    await importer_of(database, Catalog([])).import_document(MCP_JSON, name="first")
    row = await stored(database)
    assert row.document is None
    assert b"hunter2" not in zlib.decompress(row.manifests)
    assert "hunter2" not in repr(row)
    vault.add_key()
    assert await renew_stored_secrets(database, vault) == 1
    vault.forget_old_keys()
    await check_stored_secrets(database, vault)
    async with database.transaction() as connection:
        await connection.execute(update(catalogs).values(reader_revision=0))
    importer = importer_of(database, catalog := Catalog([]))
    await importer.reload()
    assert keys(catalog) == ["acme"]


async def test_what_an_earlier_version_kept_in_clear_is_encrypted_when_it_is_read(
    database: Database, importer_of: ImporterOf
) -> None:
    await importer_of(database, Catalog([])).import_document(MCP_JSON, name="first")
    in_clear = zlib.compress(MCP_JSON)
    async with database.transaction() as connection:
        as_it_was = {"document": in_clear, "document_encrypted": None, "manifests": in_clear, "reader_revision": 0}
        await connection.execute(update(catalogs).values(**as_it_was))
    importer = importer_of(database, catalog := Catalog([]))
    await importer.reload()
    found = catalog.find("acme")
    assert found is not None
    assert [secret.env for secret in found.secrets] == ["LOGIN"]
    row = await stored(database)
    assert row.document is None
    assert b"hunter2" not in zlib.decompress(row.manifests)
    async with database.transaction() as connection:
        await connection.execute(update(catalogs).values(reader_revision=0))
    again = Catalog([])
    await importer_of(database, again).reload()
    assert keys(again) == ["acme"]


async def test_catalogs_of_the_schema_before_are_encrypted_by_the_next_start(
    database: Database, importer_of: ImporterOf
) -> None:
    await importer_of(database, Catalog([])).import_document(MCP_JSON, name="first")
    async with database.transaction() as connection:
        await connection.execute(update(catalogs).values(document=zlib.compress(MCP_JSON)))
        for later in ("installations", "template_private_names", "removed_volumes"):
            await connection.execute(text(f"DROP TABLE {later}"))
        await connection.execute(text("ALTER TABLE catalogs DROP COLUMN document_encrypted"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))
    await database.migrate()
    importer = importer_of(database, catalog := Catalog([]))
    await importer.reload()
    assert keys(catalog) == ["acme"]
    row = await stored(database)
    assert row.document is None
    assert row.document_encrypted is not None


async def test_a_stored_server_that_this_version_refuses_keeps_no_other_out(
    database: Database, importer_of: ImporterOf
) -> None:
    importer = importer_of(database, Catalog([]))
    await importer.import_document(document("a"), name="first")
    await importer.import_document(document("b"), name="second")
    in_clear = {"document": zlib.compress(b"- no catalog"), "document_encrypted": None}
    refused = {"manifests": zlib.compress(b'[{"name": "a"}]'), **in_clear}
    async with database.transaction() as connection:
        await connection.execute(update(catalogs).where(catalogs.c.name == "first").values(**refused))
    importer = importer_of(database, catalog := Catalog([]))
    await importer.reload()
    assert keys(catalog) == ["b"]
    (refusal,) = await importer.refused("first")
    assert "no catalog of a known format" in refusal.reason
    await importer.remove("first")


async def test_a_report_tells_what_is_not_run_and_what_was_not_taken_over(
    database: Database, importer_of: ImporterOf
) -> None:
    importer = importer_of(database, Catalog([]))
    tiles = {"good": {"image": "a"}, "host": {"image": "a", "privileged": True}, "bad": {"image": 5}}
    report = await importer.import_document(json.dumps({"registry": tiles}).encode(), name="first")
    assert (report.servers, list(report.not_run)) == (2, ["host"])
    assert [str(refusal) for refusal in report.refused] == ["bad: image: Input should be a valid string"]
    assert await importer.refused("first") == report.refused


@pytest.mark.parametrize("name", ["shipped", "own", "", "a/b", "x" * 65])
async def test_a_catalog_cannot_have_every_name(database: Database, importer_of: ImporterOf, name: str) -> None:
    importer = importer_of(database, Catalog([]))
    with pytest.raises(InvalidRequest, match="cannot be the name of a catalog"):
        await importer.import_document(document("a"), name=name or " ")


async def test_a_catalog_is_called_after_its_file_or_what_it_calls_itself(
    database: Database, importer_of: ImporterOf, tmp_path: Path
) -> None:
    importer = importer_of(database, Catalog([]))
    file = tmp_path / "catalog.yaml"
    file.write_text("displayName: Our Own!\nregistry: {}")
    assert (await importer.import_origin(str(file), by_operator=True)).source.name == "our-own"
    assert (await importer.import_document(document("a"))).source.name == "docker-catalog"


async def test_what_is_not_there_is_named_with_what_is(
    database: Database, importer_of: ImporterOf, tmp_path: Path
) -> None:
    importer = importer_of(database, Catalog([]))
    await importer.import_document(document("a"), name="first")
    for work in (importer.refresh, importer.diff, importer.pin, importer.unpin, importer.remove, importer.refused):
        with pytest.raises(NotFound, match="There is no imported catalog 'second'. There are: first"):
            await work("second")
    with pytest.raises(InvalidRequest, match="came in a request and has no origin"):
        await importer.refresh("first")
    with pytest.raises(InvalidRequest, match="is no https URL"):
        await importer.import_origin("/etc/passwd")
    with pytest.raises(InvalidRequest, match="No such file"):
        await importer.import_origin(str(tmp_path / "absent"), by_operator=True)
    with pytest.raises(InvalidRequest, match="no catalog of a known format"):
        await importer.import_document(b"{}")
