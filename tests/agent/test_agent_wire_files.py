"""/files on the wire: framing, encodings, ranges, errors, memory."""

import gzip
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sandgate_agent.errors import PreconditionFailed, RangeNotSatisfiable
from sandgate_agent.files.conditions import is_unchanged_for
from sandgate_agent.files.download import choose_coding, parse_range

from tests.agent.running_agent import RunningAgent

_LARGE_MIB = 256

OCTETS = {"Content-Type": "application/octet-stream"}


def upload(client: httpx.Client, path: str, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    return client.post("/files", params={"path": path}, content=content, headers={**OCTETS, **headers})


def download(client: httpx.Client, path: str, **headers: str) -> httpx.Response:
    return client.get(
        "/files", params={"path": path}, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def test_the_answer_to_an_upload_is_the_list_of_files(agent: RunningAgent) -> None:
    with agent.client() as client:
        answer = upload(client, "folder/file.bin", b"x")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == [{"name": "file.bin", "type": "file", "path": f"{agent.home}/folder/file.bin"}]


def test_a_download_says_what_it_is(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "page ü.html", b"<p>")
        answer = download(client, "page ü.html")

    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["content-length"] == "3"
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''page%20%C3%BC.html"
    assert answer.headers["accept-ranges"] == "bytes"


def test_an_empty_file_has_length_zero(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "nothing", b"")
        answer = download(client, "nothing", Accept_Encoding="gzip, deflate")

    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "0", b"")


def test_a_chunked_upload_has_no_length_and_arrives_whole(agent: RunningAgent) -> None:
    pieces = [os.urandom(70_000) for _ in range(30)]
    with agent.client() as client:
        answer = upload(client, "chunked", iter(pieces))

    assert answer.status_code == 200
    assert (agent.home / "chunked").read_bytes() == b"".join(pieces)


def test_the_full_path_is_taken_from_the_file_name_of_each_part(agent: RunningAgent) -> None:
    names = [f"{agent.home}/form/a/name.txt", "form/b/name.txt", 'form/with "quotes".txt', "form/ünï.txt"]
    boundary = b"limit"
    body = b"".join(
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="'
        + name.replace('"', '\\"').encode()
        + b'"\r\n\r\n'
        + str(number).encode()
        + b"\r\n"
        for number, name in enumerate(names)
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    with agent.client() as client:
        answer = client.post("/files", content=body + b"--limit--\r\n", headers=headers)

    paths = [entry["path"] for entry in answer.json()]
    assert paths == [names[0], *(f"{agent.home}/{name}" for name in names[1:])]
    assert [Path(path).read_text() for path in paths] == ["0", "1", "2", "3"]


def test_the_query_s_path_wins_over_the_file_name_of_a_single_part(agent: RunningAgent) -> None:
    with agent.client() as client:
        answer = client.post("/files?path=chosen", files={"file": ("ignored/name", b"x")})

    assert [entry["path"] for entry in answer.json()] == [f"{agent.home}/chosen"]


def test_two_parts_for_one_path_are_refused(agent: RunningAgent) -> None:
    parts = [("file", ("same", b"1")), ("file", ("./same", b"2"))]
    with agent.client() as client:
        by_name = client.post("/files", files=parts)
        by_query = client.post("/files?path=same", files=parts)

    assert [answer.status_code for answer in (by_name, by_query)] == [400, 400]
    assert "several files of the upload have the same path" in by_name.json()["message"]


def test_a_file_name_that_is_no_text_is_refused(agent: RunningAgent) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="caf\xe9"\r\n\r\nx\r\n--b--\r\n'
    with agent.client() as client:
        answer = client.post("/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert (answer.status_code, answer.json()["message"]) == (400, "the name of a file is not UTF-8")


def test_other_fields_of_a_form_are_ignored(agent: RunningAgent) -> None:
    parts = [("comment", (None, b"hello")), ("file", ("with-comment", b"x")), ("comment", (None, b"bye"))]
    with agent.client() as client:
        answer = client.post("/files", files=parts)

    assert [entry["name"] for entry in answer.json()] == ["with-comment"]
    assert (agent.home / "with-comment").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("query", "content_type", "body", "status", "message"),
    [
        ("", "application/octet-stream", b"x", 400, "the query parameter path is required"),
        ("?path=x", "text/csv", b"x", 415, "upload with multipart/form-data or application/octet-stream"),
        ("?path=x", "multipart/form-data", b"x", 400, "the multipart body has no boundary"),
        ("?path=x", "multipart/form-data; boundary=b", b"nonsense", 400, "the multipart body is malformed"),
        ("?path=x", "multipart/form-data; boundary=b", b"--b\r\n", 400, "ends before its last boundary"),
        ("?path=x", "multipart/form-data; boundary=b", b"--b--\r\n", 400, "the upload carries no file"),
        ("?path=a%00b", "application/octet-stream", b"x", 400, "may not contain a NUL character"),
        ("?path=" + "n" * 300, "application/octet-stream", b"x", 400, "cannot be used: File name too long"),
        ("?path=/etc/passwd/x", "application/octet-stream", b"x", 400, "has a parent that is not a directory"),
        ("?path=/dev/null", "application/octet-stream", b"x", 400, "is not a regular file"),
        ("?path=/proc/1/x", "application/octet-stream", b"x", 404, "does not exist"),
        ("?path=" + "n/" * 2500, "application/octet-stream", b"x", 400, "the path is longer than 4095 bytes"),
        ("?path=x&username=nobody-knows", "application/octet-stream", b"x", 401, "invalid username: 'nobody-knows'"),
    ],
)
def test_a_wrong_upload_is_refused_with_its_reason(
    agent: RunningAgent, query: str, content_type: str, body: bytes, status: int, message: str
) -> None:
    with agent.client() as client:
        answer = client.post(f"/files{query}", content=body, headers={"Content-Type": content_type})

    assert (answer.status_code, answer.json()["code"], message in answer.json()["message"]) == (status, status, True)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("", 400, "the query parameter path is required"),
        ("missing", 404, "does not exist"),
        (".", 400, "is a directory"),
        ("/etc/passwd/x", 400, "has a parent that is not a directory"),
        ("/dev/zero", 400, "is not a regular file"),
        ("a\0b", 400, "may not contain a NUL character"),
    ],
)
def test_a_wrong_download_is_refused_with_its_reason(agent: RunningAgent, path: str, status: int, message: str) -> None:
    with agent.client() as client:
        answer = download(client, path)

    assert (answer.status_code, answer.json()["code"], message in answer.json()["message"]) == (status, status, True)


def test_a_broken_upload_leaves_no_new_file(agent: RunningAgent) -> None:
    with agent.client() as client:
        answer = upload(client, "half.gz", gzip.compress(os.urandom(100_000))[:-20], **{"Content-Encoding": "gzip"})

    assert (answer.status_code, answer.json()["message"]) == (400, "the gzip body ends too early")
    assert not (agent.home / "half.gz").exists()


def test_a_gzip_upload_is_stored_unpacked_whatever_it_swells_to(agent: RunningAgent) -> None:
    members = gzip.compress(b"first") + gzip.compress(bytes(50 << 20))
    with agent.client() as client:
        answer = upload(client, "unpacked", members, **{"Content-Encoding": "gzip"})

    assert answer.status_code == 200
    assert (agent.home / "unpacked").stat().st_size == 5 + (50 << 20)


def test_an_unknown_content_encoding_is_refused(agent: RunningAgent) -> None:
    with agent.client() as client:
        answer = upload(client, "x", b"x", **{"Content-Encoding": "br"})

    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip")


def test_a_caller_who_asks_for_gzip_gets_it(agent: RunningAgent) -> None:
    content = b"abc" * 1_000_000
    with agent.client() as client:
        upload(client, "compressible", content)
        with client.stream("GET", "/files?path=compressible", headers={"Accept-Encoding": "gzip"}) as answer:
            raw = b"".join(answer.iter_raw())

    assert answer.headers["content-encoding"] == "gzip"
    assert len(raw) < len(content) // 50
    assert zlib.decompress(raw, 31) == content


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip;q=1.0", "gzip"),
        ("gzip, deflate, br, zstd", "identity"),
        ("gzip, identity;q=0", "gzip"),
        ("gzip, *;q=0", "gzip"),
        ("identity", "identity"),
        ("*", "identity"),
        ("br", "identity"),
        ("gzip;q=0", "identity"),
    ],
)
def test_plain_bytes_unless_the_caller_means_gzip(accepted: str | None, coding: str) -> None:
    assert choose_coding(accepted) == coding


def test_a_caller_who_accepts_neither_is_told(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "x", b"x")
        answers = [download(client, "x", Accept_Encoding=value) for value in ("identity;q=0", "br, *;q=0")]

    assert [answer.status_code for answer in answers] == [406, 406]


def test_a_range_is_answered_with_its_bytes(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "digits", b"0123456789")
        answer = download(client, "digits", Range="bytes=2-4", Accept_Encoding="gzip")
        beyond = download(client, "digits", Range="bytes=10-")

    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert "content-encoding" not in answer.headers
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")


def test_a_range_of_another_version_is_answered_with_the_whole(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "versioned", b"0123456789")
        modified = download(client, "versioned").headers["last-modified"]
        same = download(client, "versioned", Range="bytes=0-0", If_Range=modified)
        other = download(client, "versioned", Range="bytes=0-0", If_Range="Mon, 01 Jan 2001 00:00:00 GMT")

    assert (same.status_code, other.status_code, other.content) == (206, 200, b"0123456789")


def test_a_caller_who_has_the_file_already_is_told_so(agent: RunningAgent) -> None:
    with agent.client() as client:
        upload(client, "cached", b"x")
        modified = download(client, "cached").headers["last-modified"]
        known = download(client, "cached", If_Modified_Since=modified)
        older = download(client, "cached", If_Modified_Since="Mon, 01 Jan 2001 00:00:00 GMT")
        undated = download(client, "cached", If_Modified_Since="yesterday")
        changed = download(client, "cached", If_Unmodified_Since="Mon, 01 Jan 2001 00:00:00 GMT")

    assert (known.status_code, known.content, known.headers["last-modified"]) == (304, b"", modified)
    assert "content-length" not in known.headers
    assert (older.status_code, undated.status_code) == (200, 200)
    assert (changed.status_code, changed.json()["code"]) == (412, 412)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": '"tag"'}, False),
        # Where a tag is asked for, the date is not looked at.
        ({"if-none-match": '"tag"', "if-modified-since": "Sun, 01 Jan 2040 00:00:00 GMT"}, False),
        ({"if-match": "*", "if-unmodified-since": "Mon, 01 Jan 2001 00:00:00 GMT"}, False),
    ],
)
def test_conditions_are_read_as_http_says(headers: dict[str, str], expected: bool) -> None:
    assert is_unchanged_for(headers, 1_700_000_000) is expected


def test_no_file_has_the_entity_tag_somebody_wants() -> None:
    with pytest.raises(PreconditionFailed):
        is_unchanged_for({"if-match": '"tag"'}, 1_700_000_000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=5-", (5, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-30", (0, 9)),
        ("bytes=0-99", (0, 9)),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_ranges_are_read_as_http_says(value: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(value, 10) == expected


@pytest.mark.parametrize(("value", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_outside_the_file_cannot_be_satisfied(value: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(value, size)


def test_each_upload_replaces_the_metadata(agent: RunningAgent) -> None:
    path = agent.home / "described"
    with agent.client() as client:
        first = upload(client, "described", b"x", **{"X-Metadata-One": "1", "X-Metadata-Two": "2", "X-Metadata-": "3"})
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        upload(client, "described", b"x", **{"X-Metadata-Two": "zwei"})
        replaced = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        upload(client, "described", b"x")

    assert first.json()[0]["metadata"] == {"one": "1", "two": "2"}
    assert attributes == {"user.e2b.one": b"1", "user.e2b.two": b"2"}
    assert replaced == {"user.e2b.two": b"zwei"}
    assert os.listxattr(path) == []


def test_metadata_that_does_not_fit_is_refused_and_leaves_no_new_file(agent: RunningAgent) -> None:
    headers = {f"X-Metadata-Key{number}": "v" * 1000 for number in range(20)}
    with agent.client() as client:
        answer = upload(client, "overloaded", b"x", **headers)

    assert (answer.status_code, "metadata is too large" in answer.json()["message"]) == (400, True)
    assert not (agent.home / "overloaded").exists()


def test_a_download_ends_when_its_caller_hangs_up(agent: RunningAgent) -> None:
    path, size = agent.home / "endless", 1 << 40
    with path.open("wb") as file:
        file.truncate(size)
    process = psutil.Process(agent.process.pid)
    with agent.client() as client, client.stream("GET", "/files?path=endless") as answer:
        assert next(answer.iter_raw())

    _until(lambda: str(path) not in [file.path for file in process.open_files()])


def test_an_upload_that_breaks_off_leaves_no_new_file(agent: RunningAgent) -> None:
    path = agent.home / "broken-off"

    def pieces() -> Iterator[bytes]:
        yield bytes(2 << 20)
        _until(path.exists)
        raise RuntimeError("the caller fails")

    with agent.client() as client, pytest.raises(RuntimeError):
        upload(client, "broken-off", pieces())

    _until(lambda: not path.exists())


def test_an_upload_that_breaks_off_leaves_what_its_repetition_has_written(agent: RunningAgent) -> None:
    path = agent.home / "repeated"
    first = begin_upload(agent, path)
    with agent.client() as client:
        repeated = upload(client, "repeated", b"whole")
    first.close()
    _until(lambda: times_open(agent, path) == 0)

    assert repeated.status_code == 200
    assert path.read_bytes() == b"whole"


def test_an_upload_that_breaks_off_leaves_the_file_to_its_repetition(agent: RunningAgent) -> None:
    path = agent.home / "being-repeated"
    first = begin_upload(agent, path)

    def pieces() -> Iterator[bytes]:
        yield bytes(2 << 20)
        _until(lambda: times_open(agent, path) == 2)
        first.close()
        _until(lambda: times_open(agent, path) < 2)
        yield b"end"

    with agent.client() as client:
        repeated = upload(client, "being-repeated", pieces())

    assert repeated.status_code == 200
    assert path.stat().st_size == (2 << 20) + 3


def test_the_last_of_several_uploads_that_break_off_leaves_no_new_file(agent: RunningAgent) -> None:
    path = agent.home / "given-up"
    uploads = [begin_upload(agent, path), begin_upload(agent, path)]
    for each in uploads:
        each.close()

    _until(lambda: not path.exists())


def test_a_large_file_each_way_leaves_the_agent_s_memory_flat(agent: RunningAgent) -> None:
    piece = bytes(1 << 20)
    process = psutil.Process(agent.process.pid)
    with agent.client(timeout=300) as client:
        upload(client, "large", iter([piece] * 16))
        before = process.memory_info().rss
        largest = before

        def pieces() -> Iterator[bytes]:
            nonlocal largest
            for number in range(_LARGE_MIB):
                if number % 64 == 0:
                    largest = max(largest, process.memory_info().rss)
                yield piece

        answer = upload(client, "large", pieces())
        received = 0
        with client.stream("GET", "/files?path=large") as stream:
            for chunk in stream.iter_raw():
                received += len(chunk)
                if received % (64 << 20) < len(chunk):
                    largest = max(largest, process.memory_info().rss)
    (agent.home / "large").unlink()

    assert (answer.status_code, received) == (200, _LARGE_MIB << 20)
    assert largest - before < 24 << 20


def begin_upload(agent: RunningAgent, path: Path) -> socket.socket:
    """Returns once the file has the beginning of the body, of which no more is sent."""
    connection = socket.create_connection(("127.0.0.1", agent.port))
    headers = "".join(f"{name}: {value}\r\n" for name, value in {**OCTETS, **agent.headers}.items())
    head = f"POST /files?path={path} HTTP/1.1\r\nHost: agent\r\n{headers}Content-Length: 99000000\r\n\r\n"
    before = times_open(agent, path)
    connection.sendall(head.encode() + bytes(1 << 20))
    _until(lambda: times_open(agent, path) > before and path.stat().st_size == 1 << 20)
    return connection


def times_open(agent: RunningAgent, path: Path) -> int:
    return [file.path for file in psutil.Process(agent.process.pid).open_files()].count(str(path))


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
