"""The manifests in docs/servers.md can be used as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.catalog import ContainerToolsRun, ImageRun, PackageRun, RemoteRun, plan_call, render
from app.catalog.catalog import parse_manifest
from app.catalog.names import server_key

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "servers.md").read_text()
MANIFESTS = {
    definition.key: definition
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for definition in [parse_manifest(text, origin="docs/servers.md")]
}
CREDENTIAL = "a-credential"


def test_there_is_an_example_of_each_kind() -> None:
    options: dict[str, dict[str, object]] = {
        "acme": {"acmeApiKey": CREDENTIAL, "region": "us"},
        "shot": {"width": 800},
        "docs": {"token": CREDENTIAL},
    }
    package = MANIFESTS["acme"].package
    assert package is not None
    assert {key: render(MANIFESTS[key], key, given).run for key, given in options.items()} == {
        "acme": PackageRun(
            command=(f"{package.directory}/bin/acme-mcp", "--region=us"),
            env={"ACME_API_KEY": CREDENTIAL, "ACME_HEADERS": f'{{"Authorization": "Bearer {CREDENTIAL}"}}'},
            package=package,
        ),
        "shot": ImageRun(
            image=MANIFESTS["shot"].image or "",
            command=("--width", "800"),
            env={},
            volumes=("shot-cache:/var/cache/shot",),
            limits=MANIFESTS["shot"].limits,
        ),
        "docs": RemoteRun(url="https://docs.example/mcp", headers={"Authorization": f"Bearer {CREDENTIAL}"}),
    }


def test_the_example_of_a_container_tool_runs_what_the_text_says() -> None:
    run = render(MANIFESTS["media"], "media", {}).run
    assert isinstance(run, ContainerToolsRun)
    call = plan_call(run.tools[0], {"args": ["-i", "/films/a b.mp4"], "directory": "/films"})
    assert (call.command, call.user) == (("-hide_banner", "-i", "/films/a b.mp4"), "1000:1000")
    assert [volume.source for volume in call.volumes] == ["/films"]


@pytest.mark.parametrize(("name", "key"), re.findall(r"^\| `([^`]+)` \| `([A-Za-z0-9]+)` \|$", PAGE, re.MULTILINE)[:5])
def test_the_keys_in_the_text_follow_the_rule(name: str, key: str) -> None:
    assert server_key(name) == key
