"""What sandboxes may reach, as the Python SDK sets it. The registry that pip is made for stands for the internet."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from e2b import Sandbox, SandboxException
from e2b.sandbox.commands.command_handle import CommandExitException

from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

_CONNECT = """
import socket, ssl, sys
from pip._internal.models.index import PyPI
name, address, port = PyPI.netloc, *sys.argv[1:]
connection = socket.create_connection((address or name, int(port)), timeout=10)
ssl.create_default_context().wrap_socket(connection, server_hostname=name).close()
"""
_NAME = "from pip._internal.models.index import PyPI; print(PyPI.netloc)"


def python(sandbox: Sandbox, program: str, *arguments: str) -> str:
    """As root, who is no better off."""
    command = shlex.join(["/usr/bin/python3", "-c", program, *arguments])
    return sandbox.commands.run(command, user="root").stdout.strip()


def reaches_registry(sandbox: Sandbox, *, at: str = "", port: int = 443) -> bool:
    try:
        python(sandbox, _CONNECT, at, str(port))
    except CommandExitException:
        return False
    return True


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
    registry = python(sandbox, _NAME)
    assert reaches_registry(sandbox)
    sandbox.update_network({"allow_internet_access": False})
    assert not reaches_registry(sandbox)
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": [registry]})
    assert reaches_registry(sandbox)
    # Whatever address the name was used with; and the name opens no other port.
    assert reaches_registry(sandbox, at="192.0.2.1")
    assert not reaches_registry(sandbox, port=80)
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["other.example.com"]})
    assert not reaches_registry(sandbox)
    sandbox.update_network({})
    assert reaches_registry(sandbox)


@pytest.mark.usefixtures("sdk")
def test_rules_given_at_creation_hold_and_are_told() -> None:
    probe = Sandbox.create("base")
    registry = python(probe, _NAME)
    limited = Sandbox.create(
        "base", network={"deny_out": lambda context: [context.all_traffic], "allow_out": [f"*.{registry}", registry]}
    )
    assert limited.get_info().network == {"deny_out": ["0.0.0.0/0"], "allow_out": [f"*.{registry}", registry]}
    assert reaches_registry(limited)
    closed = Sandbox.create("base", network={"deny_out": ["0.0.0.0/0"], "allow_out": ["192.0.2.1"]})
    assert not reaches_registry(closed)
    assert reaches_registry(probe)


@pytest.mark.usefixtures("sdk")
def test_hosts_without_everything_denied_are_refused_in_words() -> None:
    with pytest.raises(SandboxException, match="ALL_TRAFFIC"):
        Sandbox.create("base", network={"allow_out": ["example.com"]})
    sandbox = Sandbox.create("base")
    with pytest.raises(SandboxException, match=r"network\.denyOut"):
        sandbox.update_network({"deny_out": ["example.com"]})
    assert reaches_registry(sandbox)


@pytest.mark.usefixtures("sdk")
def test_rules_hold_while_no_control_plane_runs_and_after_it_is_back(installation: Installation) -> None:
    sandbox = Sandbox.create("base")
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["other.example.com"]})
    installation.kill()
    installation.start()
    assert not reaches_registry(sandbox)
    sandbox.update_network({})
    assert reaches_registry(sandbox)
