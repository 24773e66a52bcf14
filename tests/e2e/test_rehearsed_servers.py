"""What `sandgate catalog install` saw a server list is what a team's first sandbox lists, before the server is up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.catalog.stand_ins import CREDENTIAL
from tests.e2e.installation import Installation, mcp_client
from tests.shipped_packages import shipped_package, shipped_package_field

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

TIME = f"{shipped_package('time').directory}/bin/mcp-server-time"
HESITANT = f"""
import os, time
if os.environ["HESITANT_TOKEN"] != {CREDENTIAL!r}:
    time.sleep(3600)
os.execv({TIME!r}, [{TIME!r}, "--local-timezone=UTC"])
"""
"""Starts for nobody but who tries it with made-up credentials."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("home")
    servers = home / "catalog" / "servers"
    servers.mkdir(parents=True)
    manifest = {
        "name": "hesitant",
        "title": "Hesitant",
        "type": "server",
        "package": shipped_package_field("time"),
        "command": ["/usr/bin/python3", "-c", HESITANT],
        "secrets": [{"name": "hesitant.token", "env": "HESITANT_TOKEN"}],
        "config": {"properties": {"colour": {"type": "string", "default": "red"}}},
        "env": [{"name": "COLOUR", "value": "{{hesitant.colour}}"}],
    }
    (servers / "hesitant.yaml").write_text(json.dumps(manifest))
    made = Installation(home, {"SANDGATE_SERVER_START_TIMEOUT_S": "60"})
    made.start()
    yield made
    made.remove()


async def test_a_server_that_is_not_up_yet_is_listed_as_it_was_when_it_was_installed(
    installation: Installation, tmp_path: Path
) -> None:
    installed = installation.run("catalog", "install", "hesitant", "time")
    assert installed.returncode == 0, installed.stderr
    assert "hesitant lists 2 tools" in installed.stderr
    sandbox = installation.create(mcp={"hesitant": {"token": "a caller's"}, "time": {}})
    assert sandbox["mcp"]["servers"]["hesitant"]["state"] == "starting"
    async with mcp_client(sandbox) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
    assert {"hesitant_get_current_time", "time_get_current_time"} <= listed
    installation.delete(sandbox["sandboxID"])


def test_what_is_known_is_not_tried_again_and_found_by_its_tools(installation: Installation) -> None:
    again = installation.run("catalog", "install", "hesitant")
    assert "hesitant is installed" in again.stderr
    assert "lists" not in again.stderr
    assert "hesitant" in installation.run("catalog", "search", "get_current_time").stdout
