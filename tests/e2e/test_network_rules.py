"""What sandboxes may reach, as the Python SDK sets it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from e2b import Sandbox, SandboxException
from e2b.sandbox.commands.command_handle import CommandExitException

from tests import registry
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e


def python(sandbox: Sandbox, program: str, *arguments: str) -> str:
    """As root, who is no better off."""
    command = shlex.join(["/usr/bin/python3", "-c", program, *arguments])
    return sandbox.commands.run(command, user="root", timeout=120).stdout.strip()


def reach_registry(sandbox: Sandbox, *at: str) -> None:
    """`at` is another address than the registry's, and a port."""
    python(sandbox, registry.patiently(registry.CONNECT), *at)


def is_shut_off(sandbox: Sandbox, *at: str) -> bool:
    try:
        python(sandbox, registry.CONNECT, *at)
    except CommandExitException:
        return True
    return False


@pytest.fixture
def sdk(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in installation.sdk_environment.items():
        monkeypatch.setenv(name, value)
    yield
    for sandbox_id in installation.sandboxes():
        Sandbox.kill(sandbox_id)


@pytest.mark.usefixtures("sdk")
def test_a_running_sandbox_is_shut_off_limited_to_a_host_and_opened_again() -> None:
    sandbox = Sandbox.create("base")
    name = python(sandbox, registry.NAME)
    reach_registry(sandbox)
    sandbox.update_network({"allow_internet_access": False})
    assert is_shut_off(sandbox)
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": [name]})
    reach_registry(sandbox)
    # Whatever address the name was used with; and the name opens no other port.
    reach_registry(sandbox, "192.0.2.1", "443")
    assert is_shut_off(sandbox, name, "80")
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["other.example.com"]})
    assert is_shut_off(sandbox)
    sandbox.update_network({})
    reach_registry(sandbox)


@pytest.mark.usefixtures("sdk")
def test_rules_given_at_creation_hold_and_are_told() -> None:
    probe = Sandbox.create("base")
    name = python(probe, registry.NAME)
    limited = Sandbox.create(
        "base", network={"deny_out": lambda context: [context.all_traffic], "allow_out": [f"*.{name}", name]}
    )
    assert limited.get_info().network == {"deny_out": ["0.0.0.0/0"], "allow_out": [f"*.{name}", name]}
    reach_registry(limited)
    closed = Sandbox.create("base", network={"deny_out": ["0.0.0.0/0"], "allow_out": ["192.0.2.1"]})
    assert is_shut_off(closed)
    reach_registry(probe)


@pytest.mark.usefixtures("sdk")
def test_hosts_without_everything_denied_are_refused_in_words() -> None:
    with pytest.raises(SandboxException, match="ALL_TRAFFIC"):
        Sandbox.create("base", network={"allow_out": ["example.com"]})
    sandbox = Sandbox.create("base")
    with pytest.raises(SandboxException, match=r"network\.denyOut"):
        sandbox.update_network({"deny_out": ["example.com"]})
    reach_registry(sandbox)


@pytest.mark.usefixtures("sdk")
def test_rules_hold_while_no_control_plane_runs_and_after_it_is_back(installation: Installation) -> None:
    sandbox = Sandbox.create("base")
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["other.example.com"]})
    installation.kill()
    installation.start()
    assert is_shut_off(sandbox)
    sandbox.update_network({})
    reach_registry(sandbox)
