"""Stands in for the internet in a pod without one, and prints what is asked of it, a JSON object a line.

    {"host": "api.example.com", "port": null}     a name was looked up
    {"host": "api.example.com", "port": 443}      a connection to it was opened

It is the pod's name server, gives every name a loopback address of its own, listens on the usual ports of all of them,
and ends each connection at once. So what a server would reach is seen, and nothing is reached.
"""

import asyncio
import ipaddress
import json
import struct
import sys

FIRST_ADDRESS = int(ipaddress.IPv4Address("127.77.0.1"))
NAME_SERVER = ("127.0.0.1", 53)
PORTS = (
    21, 22, 25, 80, 443, 465, 587, 993, 1433, 1883, 3000, 3306, 3307, 4317, 4318, 5000, 5432, 5672, 6333, 6379, 7233,
    7474, 7687, 8000, 8080, 8086, 8123, 8443, 8529, 8888, 9000, 9042, 9090, 9091, 9200, 9443, 11211, 18091, 27017,
)  # fmt: skip

_HEADER = struct.Struct("!6H")
_IS_ANSWER = 0x8180
_TYPE_A = 1
_TTL_S = 60


class Names:
    """Names that were asked for, each with an address."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._told: set[tuple[str, int | None]] = set()

    def address_of(self, name: str) -> str:
        if name not in self._addresses:
            address = str(ipaddress.IPv4Address(FIRST_ADDRESS + len(self._addresses)))
            self._addresses[name] = address
            self._names[address] = name
        self.tell(name, None)
        return self._addresses[name]

    def tell_connection(self, address: str, port: int) -> None:
        if address in self._names:
            self.tell(self._names[address], port)

    def tell(self, host: str, port: int | None) -> None:
        if (host, port) not in self._told:
            self._told.add((host, port))
            sys.stdout.write(json.dumps({"host": host, "port": port}) + "\n")
            sys.stdout.flush()


class NameServer(asyncio.DatagramProtocol):
    """RFC 1035, as much as resolvers of programs need: one question, an address for every name."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        try:
            answer = self._answer(data)
        except (IndexError, UnicodeDecodeError, struct.error):
            return  # no query
        self._transport.sendto(answer, address)

    def _answer(self, query: bytes) -> bytes:
        identifier, *_ = _HEADER.unpack_from(query)
        labels = []
        position = _HEADER.size
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode("ascii"))
            position += 1 + length
        (kind,) = struct.unpack_from("!H", query, position + 1)
        question = query[_HEADER.size : position + 5]
        name = ".".join(labels).lower()
        if kind != _TYPE_A:
            return _HEADER.pack(identifier, _IS_ANSWER, 1, 0, 0, 0) + question
        packed = ipaddress.IPv4Address(self._names.address_of(name)).packed
        # 0xC00C points back to the name in the question.
        record = struct.pack("!HHHIH", 0xC00C, _TYPE_A, 1, _TTL_S, len(packed)) + packed
        return _HEADER.pack(identifier, _IS_ANSWER, 1, 1, 0, 0) + question + record


async def main() -> None:
    names = Names()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.tell_connection(*writer.get_extra_info("sockname")[:2])
        writer.close()

    await asyncio.get_running_loop().create_datagram_endpoint(lambda: NameServer(names), local_addr=NAME_SERVER)
    servers = [await asyncio.start_server(accept, "0.0.0.0", port) for port in PORTS]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.serve_forever())


if __name__ == "__main__":
    asyncio.run(main())
