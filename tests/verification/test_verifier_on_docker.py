"""The verifier on a real engine: a server that works, what it reaches out for, and one that ends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.catalog import Catalog, ServerDefinition
from app.catalog.merging import Entry
from app.catalog.rehearsals import rehearsed_fingerprints
from app.engines.docker_engine import DockerEngine
from app.main import make_blueprint, make_packages, sandbox_images
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.sandboxes.pod_http import make_http_client
from app.sandboxes.server_lists import tools_in
from app.settings import ROOT, Settings
from app.verification import Verifier
from tests.shipped_packages import shipped_package, shipped_package_field

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

TIME = f"{shipped_package('time').directory}/bin/mcp-server-time"
REACHING = f"""
import os, socket
socket.getaddrinfo("only.asked.example", None)
socket.create_connection(("api.acme.example", 443)).close()
os.execv({TIME!r}, [{TIME!r}, "--local-timezone=UTC"])
"""
CHOOSY = f"""
import os, sys
if "ACME_TOKEN" not in os.environ:
    sys.exit("no token")
os.execv({TIME!r}, [{TIME!r}, "--local-timezone=UTC"])
"""
ENDING = "import sys; sys.exit('401 Unauthorized: ' + __import__('os').environ['ACME_TOKEN'])"


def server(name: str, program: str, *, asks: bool = True) -> ServerDefinition:
    return ServerDefinition.model_validate(
        {
            "name": name,
            "title": name,
            "type": "server",
            "package": shipped_package_field("time"),
            "command": ["/usr/bin/python3", "-c", program],
            "secrets": [{"name": f"{name}.token", "env": "ACME_TOKEN", "required": asks}],
        }
    )


SERVERS = {
    "reaching": server("reaching", REACHING),
    "choosy": server("choosy", CHOOSY, asks=False),
    "ending": server("ending", ENDING),
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def verifier() -> AsyncIterator[Verifier]:
    settings = Settings()
    tags = sandbox_images(settings)
    shipped = Catalog.load(ROOT / "catalog" / "servers").entry("time")
    assert shipped is not None
    engine = DockerEngine(f"tests-verify-{os.getpid()}", guard_image=tags.base)
    try:
        await engine.prepare()
        async with make_http_client() as http:
            yield Verifier(
                engine=engine,
                agents=AgentClient(http),
                gateways=GatewayClient(http),
                http=http,
                packages=make_packages(settings, engine, tags),
                catalog=Catalog([shipped, *(Entry(definition, "test") for definition in SERVERS.values())]),
                blueprint=make_blueprint(settings, tags),
                recorder=ROOT / "sandbox_images" / "recorder" / "record_egress.py",
            )
        assert await engine.observe() == {}
    finally:
        await engine.remove_installation()
        await engine.aclose()


async def test_a_server_that_works_is_verified_with_what_it_took_and_reached_out_for(verifier: Verifier) -> None:
    trial = await verifier.verify(SERVERS["reaching"])
    found = trial.verification
    assert (found.state, found.tools, found.message) == ("verified", 2, None)
    assert found.hosts == ("api.acme.example:443", "only.asked.example")
    assert found.start_s is not None
    assert found.digest == shipped_package("time").digest
    ((rehearsal, lists),) = trial.rehearsed
    assert rehearsal.fingerprint in rehearsed_fingerprints(SERVERS["reaching"], {"acmeToken": "a caller's"})
    assert lists is not None
    assert [tool.name for tool in tools_in(lists.content)] == ["get_current_time", "convert_time"]


async def test_a_server_is_rehearsed_without_what_can_be_left_out_too(verifier: Verifier) -> None:
    trial = await verifier.verify(SERVERS["choosy"])
    assert trial.verification.state == "verified"
    full, bare = (lists and [tool.name for tool in tools_in(lists.content)] for _, lists in trial.rehearsed)
    assert (full, bare) == (["get_current_time", "convert_time"], None)


async def test_a_server_that_asks_its_service_first_is_told_apart_with_its_last_words(verifier: Verifier) -> None:
    found = (await verifier.verify(SERVERS["ending"])).verification
    assert (found.state, found.tools) == ("needs real credentials", 0)
    assert found.message is not None
    assert "401 Unauthorized" in found.message
