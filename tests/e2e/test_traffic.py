"""Traffic to services in real sandboxes: on loopback, private, under another host name, and while they are paused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.e2e.installation import Installation, wait_until

PORT = 3000

SERVICE = f"""
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.headers["Host"].encode() + b" " + self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", {PORT}), Echo).serve_forever()
"""


class Service:
    """A service on 127.0.0.1 in a sandbox of its own."""

    def __init__(self, installation: Installation, sandbox: Mapping[str, Any]) -> None:
        self.installation = installation
        self.sandbox = sandbox
        self.id = str(sandbox["sandboxID"])
        self.sdk = installation.sdk(self.id)
        self.sdk.files.write("/home/user/service.py", SERVICE)
        self.sdk.commands.run("python3 /home/user/service.py", background=True)
        token = sandbox.get("trafficAccessToken")
        self.headers = {"e2b-traffic-access-token": token} if token else {}
        wait_until(lambda: self.ask().status_code == 200, lambda: self.ask().text)

    def ask(self, port: int = PORT, **headers: str) -> httpx.Response:
        routing = {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": str(port)}
        own = self.headers | routing | {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(self.installation.url, headers=own, content=b"hello", timeout=60, trust_env=False)


@pytest.fixture
def service(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Service]:
    """Its parameter is what the create asks for."""
    sandbox = installation.create(**request.param)
    yield Service(installation, sandbox)
    installation.delete(sandbox["sandboxID"])


@pytest.mark.parametrize("service", [{}, {"mcp": {"time": {}}}], indirect=True, ids=["workspace alone", "with gateway"])
def test_a_service_on_loopback_is_reached_and_the_pods_own_doors_are_not(service: Service) -> None:
    for _ in range(3):
        assert service.ask().text == f"127.0.0.1:{service.installation.port} hello"
    closed = service.ask(PORT + 1)
    assert (closed.status_code, closed.json()["message"]) == (502, "The sandbox is running but port is not open")
    assert [service.ask(port).status_code for port in (49984, 50006)] == [404, 404]
    service.installation.delete(service.id)
    gone = service.ask()
    assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found")


PRIVATE = {"network": {"allowPublicTraffic": False, "maskRequestHost": "service.internal:${PORT}"}}


@pytest.mark.parametrize("service", [PRIVATE], indirect=True, ids=["private"])
def test_a_private_sandbox_asks_for_its_token_and_services_see_the_masked_host(service: Service) -> None:
    assert service.ask().text == f"service.internal:{PORT} hello"
    assert service.ask(e2b_traffic_access_token="wrong").status_code == 403
    service.headers = {}
    refused = service.ask()
    assert refused.status_code == 403
    assert "Token header 'e2b-traffic-access-token' is missing" in refused.json()["message"]


WAKING = {"autoPause": True, "autoResume": {"enabled": True}}


@pytest.mark.parametrize("service", [WAKING], indirect=True, ids=["auto-resume"])
def test_traffic_resumes_a_paused_sandbox(service: Service) -> None:
    service.sdk.pause()
    assert service.ask().text == f"127.0.0.1:{service.installation.port} hello"
    assert service.sdk.is_running()
