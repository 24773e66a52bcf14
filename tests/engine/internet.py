"""An internet of one container: addresses that are routed through this host, with services that say what they see."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass

import docker
import trustme

from tests.engine.subjects import DockerSubject

FIRST, SECOND = "198.51.100.2", "198.51.100.3"
"""Of a network for documentation (RFC 5737): nothing else has these addresses."""
STREAM = 9000
"""TCP: a line every 20 ms. UDP: a datagram every 20 ms to whoever sent one."""

_INTERFACES = """
import fcntl, os, socket, struct, sys, time

def attribute(kind, content):
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)

def link_to(pid, here, there):
    # A pair of veth devices, the second in the process's network namespace (rtnetlink(7), linux/if_link.h).
    info = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = info + attribute(3, there.encode()) + attribute(19, struct.pack("=I", pid))
    veth = attribute(1, b"veth") + attribute(2, attribute(1, peer))
    body = info + attribute(3, here.encode()) + attribute(18, veth)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error))

def internet_address(text):
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

def set_address(name, text):
    # netdevice(7): SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS with IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8916, struct.pack("16s16s8x", name.encode(), internet_address(text)))
        fcntl.ioctl(control, 0x891C, struct.pack("16s16s8x", name.encode(), internet_address("255.255.255.0")))
        fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", name.encode(), 1))
"""

_LINK = f"""{_INTERFACES}
link_to(int(sys.argv[1]), sys.argv[2], "wan")
set_address(sys.argv[2], "198.51.100.1")
"""

_SERVE = f"""{_INTERFACES}
import json, ssl, threading

def answer(connection, peer):
    try:
        connection.settimeout(30)
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += connection.recv(4096) or b"\\r\\n\\r\\n"
        if b"Upgrade: tick" in head:
            tick(connection, peer)
        hosts = [line[5:].strip().decode() for line in head.split(b"\\r\\n") if line[:5].lower() == b"host:"]
        body = json.dumps({{"address": connection.getsockname()[0], "host": hosts[0]}}).encode()
        head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d" % len(body)
        connection.sendall(head + b"\\r\\n\\r\\n" + body)
        connection.close()
    except OSError:
        pass

def answer_tls(connection, peer):
    try:
        connection.settimeout(30)
        answer(context.wrap_socket(connection, server_side=True), peer)
    except OSError:
        pass

def tick(connection, peer):
    try:
        while True:
            connection.sendall(b"tick\\n")
            time.sleep(0.02)
    except OSError:
        pass

def listen(port, serve):
    server = socket.create_server(("0.0.0.0", port))
    while True:
        threading.Thread(target=serve, args=server.accept(), daemon=True).start()

def datagrams(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", port))

    def push(peer):
        for _ in range(3000):
            server.sendto(b"tick", peer)
            time.sleep(0.02)

    while True:
        _, peer = server.recvfrom(1024)
        threading.Thread(target=push, args=(peer,), daemon=True).start()

while not os.path.exists("/sys/class/net/wan"):
    time.sleep(0.02)
set_address("wan", "{FIRST}")
set_address("wan:1", "{SECOND}")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    # A default route: struct rtentry, RTF_UP | RTF_GATEWAY, SIOCADDRT.
    nowhere = internet_address("0.0.0.0")
    route = struct.pack("8x16s16s16sH86x", nowhere, internet_address("198.51.100.1"), nowhere, 3)
    fcntl.ioctl(control, 0x890B, route)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/certificate.pem")
for port, serve in ((80, answer), (443, answer_tls), ({STREAM}, tick)):
    threading.Thread(target=listen, args=(port, serve)).start()
for port in (443, {STREAM}):
    threading.Thread(target=datagrams, args=(port,)).start()
"""

_HTTP = """
import json, socket, ssl, sys

def outcome(request):
    address, port, host, is_tls = request
    try:
        with socket.create_connection((address, port), timeout=30) as connection:
            if is_tls:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                connection = context.wrap_socket(connection, server_hostname=host)
            connection.sendall(f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
            head, _, body = answer.partition(b"\\r\\n\\r\\n")
            status = head.split()[1].decode() if head else "closed"
            return json.loads(body) if status == "200" else status
    except ssl.SSLError as error:
        return error.reason or "SSL"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return __import__("errno").errorcode.get(error.errno, str(error))

print(json.dumps([outcome(request) for request in json.loads(sys.argv[1])]))
"""


@dataclass(frozen=True, slots=True)
class Request:
    host: str | None
    address: str = SECOND
    """What the program in the pod takes for the host's address."""
    port: int = 443
    is_tls: bool = True


def plain(host: str, address: str = SECOND) -> Request:
    return Request(host, address, 80, is_tls=False)


async def get(subject: DockerSubject, pod_id: str, *requests: Request) -> list[dict[str, str] | str]:
    """What each request in the pod was answered: the body of a 200, or a word for why there is none."""
    asked = [(request.address, request.port, request.host, request.is_tls) for request in requests]
    answers: list[dict[str, str] | str] = json.loads(
        await subject.output_of(pod_id, "only", "python3", "-c", _HTTP, json.dumps(asked))
    )
    return answers


class Internet:
    """Blocking."""

    def __init__(self, api: docker.APIClient, image: str, name: str) -> None:
        self._api = api
        self._image = image
        self._name = name
        self._link = f"{name[-10:]}-wan"

    def start(self) -> None:
        host = self._api.create_host_config(network_mode="none", init=True, cap_add=["NET_ADMIN"])
        command = ["python3", "-c", _SERVE]
        made = self._api.create_container(self._image, command=command, name=self._name, host_config=host)
        certificate = trustme.CA().issue_cert("*.example.com")
        pem = certificate.private_key_pem.bytes() + b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        self._api.put_archive(made["Id"], "/", _tar("certificate.pem", pem))
        self._api.start(made["Id"])
        pid = self._api.inspect_container(made["Id"])["State"]["Pid"]
        self._link_to(pid)

    def stop(self) -> None:
        """Its end of the link goes with it, and so does the link."""
        self._api.remove_container(self._name, force=True)

    def _link_to(self, pid: int) -> None:
        host = self._api.create_host_config(network_mode="host", pid_mode="host", cap_add=["NET_ADMIN"])
        command = ["python3", "-c", _LINK, str(pid), self._link]
        made = self._api.create_container(self._image, command=command, host_config=host)["Id"]
        try:
            self._api.start(made)
            code = self._api.wait(made, timeout=30)["StatusCode"]
            assert code == 0, self._api.logs(made).decode()
        finally:
            self._api.remove_container(made, force=True)


def _tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
