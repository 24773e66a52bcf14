"""One installation with a domain and warm pods for all of these tests, and the clients that are not Python packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.compatibility.features import Case
from tests.e2e.compatibility.names import wildcard
from tests.e2e.compatibility.runs import DOMAIN, Runs
from tests.e2e.installation import Installation
from tests.ports import free_port


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    port = free_port()
    settings = {
        "SANDGATE_SANDBOX_DOMAIN": f"{DOMAIN}:{port}",
        "SANDGATE_TLS_PORT": str(port),
        "SANDGATE_POOL": "base=3,mcp-gateway=1",
    }
    installation = Installation(tmp_path_factory.mktemp("gate"), settings)
    installation.start()
    yield installation
    installation.stop()
    removed = installation.run("uninstall", "--volumes")
    # An engine that was cut off in the middle of a start may hold on to a network, and uninstall then says so.
    assert removed.returncode == 0 or "takes it for used" in removed.stdout + removed.stderr, removed
    installation.remove_images()


@pytest.fixture(scope="session")
def node(node_modules: Path) -> str:
    """Node 22, which the SDK of that language is for."""
    (found,) = node_modules.glob("node-linux-*/bin/node")
    return str(found)


@pytest.fixture(scope="session")
def runs(
    gate: Installation, node: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Runs]:
    """Of what is selected."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    cases = [call.params["case"] for call in calls if call is not None and isinstance(call.params.get("case"), Case)]
    runs = Runs(gate, cases, node=node, folder=tmp_path_factory.mktemp("runs"))
    with wildcard(DOMAIN):
        yield runs
        runs.end()
