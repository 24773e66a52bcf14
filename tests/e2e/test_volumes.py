"""Volumes with the official Python SDK and nothing changed: what is written stays, whatever becomes of the server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2b import Volume
from e2b.exceptions import AuthenticationException, VolumeException, VolumePathNotFoundException

from app.sandboxes.planning import VOLUME_LABEL
from tests.e2e.installation import Installation, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """A server that nobody else uses, and the environment that leads the SDK to it."""
    installation = Installation(tmp_path / "home", settings={"SANDGATE_POOL": "base=0,mcp-gateway=0"})
    try:
        installation.start()
        for name, value in {**installation.sdk_environment, "E2B_VOLUME_API_URL": installation.url}.items():
            monkeypatch.setenv(name, value)
        yield installation
    finally:
        installation.kill()
        installation.run("uninstall", "--volumes")


def test_files_outlive_a_killed_server_and_go_with_their_volume(own: Installation) -> None:
    volume = Volume.create("data")
    written = volume.write_file("/in/note.txt", "hello", force=True)
    assert (written.path, written.size, written.mode) == ("/in/note.txt", 5, 0o666)
    large = bytes(range(256)) * 65536
    assert volume.write_file("large", io.BytesIO(large)).size == len(large)
    assert b"".join(volume.read_file("large", format="stream")) == large
    with pytest.raises(VolumeException, match="409"):
        volume.write_file("/in/note.txt", "again")
    (pod,) = pods_of_volumes(own)

    own.kill()
    own.start()
    wait_until(lambda: pod not in pods_of_volumes(own), lambda: own.log.read_text()[-2000:])
    again = Volume.connect(volume.volume_id)
    assert again.read_file("/in/note.txt") == "hello"
    assert [entry.path for entry in again.list("/", depth=2)] == ["/in", "/in/note.txt", "/large"]
    again.remove("/in")
    with pytest.raises(VolumePathNotFoundException):
        again.read_file("/in/note.txt")
    with pytest.raises(AuthenticationException):
        again.read_file("/large", token="of another volume")
    assert Volume.destroy(volume.volume_id)
    assert not Volume.destroy(volume.volume_id)
    assert own.volumes() == []
    assert pods_of_volumes(own) == []


def test_a_volume_is_no_place_to_reach_the_agent_from(own: Installation) -> None:
    volume = Volume.create("data")
    volume.make_dir("/run")
    client = docker.APIClient()
    try:
        (name,) = own.volumes()
        image = client.inspect_container(pods_of_volumes(own)[0])["Config"]["Image"]
        # What root in a sandbox may leave in a volume.
        link = "ln -s /proc/1/environ /v/secret; ln -s / /v/root; mkdir -p /v/proc/1"
        host = client.create_host_config(binds=[f"{name}:/v"], network_mode="none")
        sandbox = client.create_container(image, entrypoint=["sh", "-c", link], host_config=host)["Id"]
        client.start(sandbox)
        client.wait(sandbox)
        client.remove_container(sandbox)
    finally:
        client.close()
    with pytest.raises(VolumePathNotFoundException):
        volume.read_file("/secret")
    assert {entry.name for entry in volume.list("/root")} == {"root", "run", "proc", "secret"}  # the volume's own root
    assert volume.get_info("/secret").target == "/proc/1/environ"
    with pytest.raises(VolumePathNotFoundException):
        volume.read_file("/root/etc/passwd")


def test_an_uninstall_keeps_volumes_unless_told_otherwise(own: Installation) -> None:
    Volume.create("kept")
    own.stop()
    told = own.run("uninstall")
    assert (told.returncode, "volumes" in told.stdout) == (0, True), told.stderr
    assert len(own.volumes()) == 1
    assert own.run("uninstall", "--volumes").returncode == 0
    assert own.volumes() == []
    own.start()
    assert Volume.list() == []


def pods_of_volumes(installation: Installation) -> list[str]:
    client = docker.APIClient()
    try:
        installation_id = (installation.home / "installation").read_text()
        labels = [f"sandgate.installation={installation_id}", f"sandgate.label.{VOLUME_LABEL}"]
        found = client.containers(all=True, filters={"label": labels})
    finally:
        client.close()
    return [container["Names"][0].lstrip("/") for container in found]
