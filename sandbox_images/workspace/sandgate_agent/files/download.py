"""GET /files: a file's bytes, whole or a range, as they are or compressed."""

import asyncio
import email.utils
import mimetypes
import os
import re
import stat
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.asgi import Request
from sandgate_agent.errors import AgentError, InvalidArgument, NotAcceptable, RangeNotSatisfiable, os_errors_mapped
from sandgate_agent.files.conditions import is_unchanged_for
from sandgate_agent.paths import resolve_path
from sandgate_agent.users import User

_PIECE = 1 << 18

_UNSIZED_LIMIT = 16 << 20
"""Bytes sent of a file that does not say its size; no useful file of /proc is larger."""

_media_types = mimetypes.MimeTypes(filenames=())


@dataclass(frozen=True, slots=True)
class OpenFile:
    descriptor: int
    size: int
    modified_s: int

    @property
    def modified(self) -> str:
        """As an HTTP date."""
        return email.utils.formatdate(self.modified_s, usegmt=True)


async def send_download(request: Request, user: User, threads: FileThreads) -> None:
    """Raises: AgentError."""
    if not request.query.get("path"):
        raise InvalidArgument("the query parameter path is required")
    path = resolve_path(request.query["path"], user)
    coding = choose_coding(request.headers.get("accept-encoding"))
    file = await threads.run(_open, path)
    try:
        headers = {
            "Content-Type": _media_types.guess_type(path)[0] or "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(os.path.basename(path), errors='replace')}",
            "Last-Modified": file.modified,
            "Vary": "Accept-Encoding",
        }
        if is_unchanged_for(request.headers, file.modified_s):
            await request.answer(304, headers={name: headers[name] for name in ("Last-Modified", "Vary")})
            return
        wanted = _wanted_range(request, file)
        if wanted is not None:
            await _send_range(request, file, wanted, headers, threads)
        elif coding == "gzip":
            await _send_compressed(request, file, headers, threads)
        else:
            await _send_whole(request, path, file, headers, threads)
    finally:
        await threads.run(os.close, file.descriptor)


def choose_coding(accepted: str | None) -> str:
    """`gzip` for a caller who asks for it alone or refuses anything else, `identity` otherwise.

    HTTP clients list gzip in every request without being asked to; between a sandbox and its caller compressing costs
    more time than it saves, and plain bytes are always acceptable unless excluded (RFC 9110, section 12.5.3).
    Raises: NotAcceptable.
    """
    weights: dict[str, float] = {}
    for item in (accepted or "").split(","):
        coding, _, parameter = item.partition(";")
        weight = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", parameter)
        if coding.strip():
            weights[coding.strip().lower()] = float(weight[1]) if weight else 1.0
    allows_gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0
    allows_identity = weights.get("identity", weights.get("*", 1.0) if "identity" not in weights else 1.0) > 0
    if allows_gzip and (not allows_identity or set(weights) == {"gzip"}):
        return "gzip"
    if not allows_identity:
        raise NotAcceptable("a file can be sent with the content encodings identity and gzip only")
    return "identity"


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None for what may be ignored: other units, several ranges, nonsense.

    Raises: RangeNotSatisfiable.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", value.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
    else:
        first, last = max(size - int(match[2]), 0), size - 1
    if first > last:
        raise RangeNotSatisfiable(f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return first, last


def _open(path: str) -> OpenFile:
    with os_errors_mapped(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InvalidArgument(f"path '{path}' is {kind}")
    return OpenFile(descriptor, status.st_size, int(status.st_mtime))


def _read_to_end(path: str, descriptor: int) -> bytes:
    content = bytearray()
    with os_errors_mapped(path):
        while len(content) < _UNSIZED_LIMIT and (piece := os.read(descriptor, _PIECE)):
            content += piece
    return bytes(content)


def _wanted_range(request: Request, file: OpenFile) -> tuple[int, int] | None:
    value = request.headers.get("range")
    if value is None or request.headers.get("if-range", file.modified) != file.modified:
        return None
    return parse_range(value, file.size)


async def _send_range(
    request: Request, file: OpenFile, wanted: tuple[int, int], headers: dict[str, str], threads: FileThreads
) -> None:
    first, last = wanted
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Length": str(last - first + 1),
        "Content-Range": f"bytes {first}-{last}/{file.size}",
    }
    await request.start_answer(206, headers)
    await _send_pieces(request, _pieces(file, threads, first, last + 1))


async def _send_whole(
    request: Request, path: str, file: OpenFile, headers: dict[str, str], threads: FileThreads
) -> None:
    if file.size == 0:
        # Files of /proc and /sys say 0 whatever they hold.
        content = await threads.run(_read_to_end, path, file.descriptor)
        await request.answer(200, content, headers)
        return
    await request.start_answer(200, {**headers, "Accept-Ranges": "bytes", "Content-Length": str(file.size)})
    await _send_pieces(request, _pieces(file, threads, 0, file.size))


async def _send_compressed(request: Request, file: OpenFile, headers: dict[str, str], threads: FileThreads) -> None:
    await request.start_answer(200, {**headers, "Content-Encoding": "gzip"})
    await _send_pieces(request, _compressed(_pieces(file, threads, 0, None), threads))


async def _send_pieces(request: Request, pieces: AsyncGenerator[bytes, None]) -> None:
    """Stops when the caller hangs up: the server takes what is sent after that without a word."""
    async with asyncio.TaskGroup() as tasks, aclosing(pieces):
        gone = tasks.create_task(request.disconnected(), name="download-hang-up")
        async for piece in pieces:
            if gone.done():
                return
            await request.send_chunk(piece)
        gone.cancel()
    await request.end_answer()


async def _compressed(pieces: AsyncGenerator[bytes, None], threads: FileThreads) -> AsyncGenerator[bytes, None]:
    deflater = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    async with aclosing(pieces):
        async for piece in pieces:
            if compressed := await threads.run(deflater.compress, piece):
                yield compressed
    yield deflater.flush()


async def _pieces(file: OpenFile, threads: FileThreads, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
    """The bytes from `start` to before `end`, or to the end of the file. Raises: AgentError when it became shorter."""
    while end is None or start < end:
        length = _PIECE if end is None else min(_PIECE, end - start)
        piece = await threads.run(os.pread, file.descriptor, length, start)
        if not piece:
            if end is None:
                return
            raise AgentError("the file became shorter while it was read")
        start += len(piece)
        yield piece
