"""`sandgate` as an operator uses it, beside a running server and without one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.installation import Installation

pytestmark = [pytest.mark.e2e, pytest.mark.docker]


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command says."""
    assert done.returncode == 1, done
    (line,) = done.stderr.strip().splitlines()
    return line


def status_with(key: str, installation: Installation) -> int:
    headers = {"X-API-KEY": key}
    return httpx.get(f"{installation.url}/v2/sandboxes", headers=headers, trust_env=False, timeout=60).status_code


def test_the_doctor_finds_nothing_wrong(installation: Installation) -> None:
    done = installation.run("doctor")
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    # How much room the machine has left is its own affair.
    assert all(line.split()[1] == "disk" for line in failed), done.stdout
    assert done.returncode == len(failed)
    for subject in ("state", "database", "catalog", "engine", "base image", "gateway image", "network"):
        assert f"ok  {subject}" in done.stdout.replace("   ", "  "), subject
    assert " disk " in done.stdout


@pytest.mark.parametrize(
    ("settings", "subject", "remedy"),
    [
        ({"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "engine", "set DOCKER_HOST"),
        ({"SANDGATE_BASE_IMAGE": "sandgate-test/another:1"}, "base image", "sandgate images build"),
        ({"SANDGATE_HOME": "/proc/nowhere"}, "state", "set SANDGATE_HOME"),
        ({"SANDGATE_DATABASE_URL": "postgresql+asyncpg://127.0.0.1:1/x"}, "database", "SANDGATE_DATABASE_URL"),
        ({"SANDGATE_DATABASE_URL": "nonsense"}, "database", "SANDGATE_DATABASE_URL"),
        ({"SANDGATE_SANDBOX_DOMAIN": "sandboxes.invalid"}, "sandbox domain", "wildcard"),
        ({"SANDGATE_EGRESS_ALLOW": "10.0.0.1"}, "settings", "SANDGATE_EGRESS_ALLOW"),
        ({"SANDGATE_CA_BUNDLE": "/nowhere/ca.pem"}, "settings", "ca.pem"),
    ],
)
def test_the_doctor_says_what_to_do(
    installation: Installation, settings: dict[str, str], subject: str, remedy: str
) -> None:
    done = installation.run("doctor", **settings)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert any(subject in line for line in failures), done.stdout
    assert done.stdout.count("→") == len(failures)
    assert remedy in done.stdout


def test_a_broken_manifest_is_named(own_installation: Installation) -> None:
    broken = own_installation.home / "catalog" / "servers" / "broken.yaml"
    broken.write_text("name: broken\ntitle: [")
    for command in ("doctor", "serve"):
        done = own_installation.run(command)
        assert done.returncode == 1
        assert str(broken) in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_keys_work_from_their_making_to_their_deletion(installation: Installation) -> None:
    made = installation.run("keys", "create", "of a test")
    key = made.stdout.strip()
    assert status_with(key, installation) == 200
    listed = installation.run("keys", "list").stdout
    (line,) = [line for line in listed.splitlines() if "of a test" in line]
    assert key[-4:] in line
    assert key not in listed
    key_id = line.split()[0]
    assert installation.run("keys", "delete", key_id).returncode == 0
    assert status_with(key, installation) == 401
    assert "keys list" in only_line(installation.run("keys", "delete", key_id))
    assert status_with(installation.key, installation) == 200


def test_the_encryption_key_is_rotated_and_sandboxes_are_adopted(own_installation: Installation) -> None:
    installation = own_installation
    installation.start()
    created = installation.create(mcp={"time": {}}, envVars={"COLOUR": "blue"})
    sandbox_id = created["sandboxID"]
    key_file = installation.home / "encryption-key"
    before = key_file.read_bytes()
    assert "Stop it first" in only_line(installation.run("keys", "rotate-encryption"))
    assert key_file.read_bytes() == before

    installation.stop()
    done = installation.run("keys", "rotate-encryption")
    assert (done.returncode, done.stdout.strip()) == (0, "2 stored secrets encrypted anew.")
    after = key_file.read_bytes()
    assert len(after.split()) == 1
    assert after != before
    assert key_file.stat().st_mode & 0o777 == 0o600

    installation.start()
    with installation.http() as http:
        again = http.post(f"/sandboxes/{sandbox_id}/connect", json={}).json()
        assert again["mcp"]["token"] == created["mcp"]["token"]
        assert again["mcp"]["servers"]["time"]["state"] == "ready"
    assert installation.sdk(sandbox_id).commands.run("echo $COLOUR").stdout == "blue\n"


def test_the_catalog_is_listed(installation: Installation) -> None:
    listed = installation.run("catalog", "list").stdout
    lines = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
    assert {"time", "git", "echoImage", "probe"} <= lines.keys()
    assert "workspace" in lines["git"]
    assert "echoApiKey" in lines["echoImage"]


def test_images_that_are_there_are_not_built_again(installation: Installation) -> None:
    done = installation.run("images", "build")
    assert done.returncode == 0
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "sandgate/base",
        "sandgate/workspace",
        "sandgate/gateway",
    ]
    assert "Step" not in done.stdout + done.stderr


def test_a_second_server_harms_the_first_one_in_no_way(installation: Installation, tmp_path: Path) -> None:
    sandbox_id = installation.create()["sandboxID"]
    assert str(installation.home) in only_line(installation.run("serve", SANDGATE_PORT="18081"))
    refused = only_line(installation.run("serve", SANDGATE_HOME=str(tmp_path / "another")))
    assert str(installation.port) in refused
    assert "Address already in use" in refused
    assert sandbox_id in installation.sandboxes()
    assert installation.sdk(sandbox_id).commands.run("echo here").stdout == "here\n"
    installation.delete(sandbox_id)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SANDGATE_PROT": "1"}, "There is no setting SANDGATE_PROT. Did you mean SANDGATE_PORT?"),
        ({"SANDGATE_PORT": "eighty"}, "SANDGATE_PORT: "),
        ({"SANDGATE_PORT": "123456"}, "SANDGATE_PORT: "),
        ({"SANDGATE_MEMORY_MIB": "-1"}, "SANDGATE_MEMORY_MIB: "),
        ({"SANDGATE_EGRESS_ALLOW": "10.0.0.1"}, "SANDGATE_EGRESS_ALLOW: '10.0.0.1' is not"),
        ({"SANDGATE_EGRESS_ALLOW": "10.0.0.1:80, x:80"}, "SANDGATE_EGRESS_ALLOW: 'x:80' is not"),
        ({"SANDGATE_HOME": "/proc/nowhere"}, "/proc/nowhere cannot be used"),
        ({"SANDGATE_HOST": "192.0.2.250"}, "192.0.2.250"),
        ({"SANDGATE_CA_BUNDLE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"SANDGATE_DATABASE_URL": "nonsense"}, "postgresql+asyncpg://"),
        (
            {
                "SANDGATE_SANDBOX_DOMAIN": "sandboxes.test",
                "SANDGATE_TLS_PORT": "18443",
                "SANDGATE_TLS_CERTIFICATE": "/nowhere/certificate.pem",
            },
            "/nowhere/certificate.pem",
        ),
    ],
)
def test_an_unusable_setting_is_told_in_one_line(
    own_installation: Installation, settings: dict[str, str], words: str
) -> None:
    assert words in only_line(own_installation.run("serve", **settings))
