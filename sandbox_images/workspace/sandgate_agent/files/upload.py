"""POST /files: one file as the body, or several as a form."""

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.asgi import Request
from sandgate_agent.errors import InvalidArgument, UnsupportedMediaType
from sandgate_agent.files.metadata import Metadata, metadata_in_headers
from sandgate_agent.files.multipart import PartBegins, PartData, PartEnds, parse_multipart
from sandgate_agent.files.sink import FileSink
from sandgate_agent.files.targets import UploadTargets
from sandgate_agent.paths import resolve_path
from sandgate_agent.users import User

_INFLATED_PIECE = 1 << 20
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

_FILE_FIELD = "file"

SinkFor = Callable[[str], FileSink]
"""Of a file's name as the caller gave it; not open yet. Raises: InvalidArgument."""


async def receive_upload(request: Request, user: User, threads: FileThreads, targets: UploadTargets) -> None:
    """Write what the request carries and answer with the list of files written. Raises: AgentError."""
    metadata = metadata_in_headers(request.headers)

    def sink_for(name: str) -> FileSink:
        return FileSink(threads, targets.at(resolve_path(name, user)), user, metadata)

    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = _decoded(request)
    if media_type == "multipart/form-data":
        paths = await _receive_form(request, content_type, body, sink_for)
    elif media_type in ("application/octet-stream", ""):
        paths = [await _receive_body(request, body, sink_for)]
    else:
        raise UnsupportedMediaType("upload with multipart/form-data or application/octet-stream")
    await request.answer_json(200, [file_entry(path, metadata) for path in paths])


async def _receive_body(request: Request, body: AsyncIterator[bytes], sink_for: SinkFor) -> str:
    if not request.query.get("path"):
        raise InvalidArgument("the query parameter path is required for an upload as application/octet-stream")
    async with sink_for(request.query["path"]) as sink:
        async for chunk in body:
            await sink.write(chunk)
    return sink.path


async def _receive_form(
    request: Request, content_type: str, body: AsyncIterator[bytes], sink_for: SinkFor
) -> list[str]:
    """The query's path names the only file; without it each part's file name is its path."""
    paths: list[str] = []
    sink: FileSink | None = None
    async with AsyncExitStack() as stack:
        async for event in parse_multipart(content_type, body):
            match event:
                case PartBegins(field=field, filename=filename) if field == _FILE_FIELD:
                    name = request.query.get("path") or filename
                    if not name:
                        raise InvalidArgument("a file needs a path: in the query parameter path or as its file name")
                    sink = sink_for(name)
                    if sink.path in paths:
                        raise InvalidArgument(f"several files of the upload have the same path '{sink.path}'")
                    await stack.enter_async_context(sink)
                    paths.append(sink.path)
                case PartData(data=data) if sink is not None:
                    await sink.write(data)
                case PartEnds():
                    sink = None
                    await stack.pop_all().aclose()
                case _:
                    pass
    if not paths:
        raise InvalidArgument(f"the upload carries no file: its form field is '{_FILE_FIELD}'")
    return paths


def file_entry(path: str, metadata: Metadata) -> dict[str, Any]:
    """What the contract tells about a file that was written."""
    name = path.rpartition("/")[2]
    return {"path": path, "name": name, "type": "file", **({"metadata": metadata} if metadata else {})}


async def _decoded(request: Request) -> AsyncIterator[bytes]:
    """The body without its content encoding. Raises: UnsupportedMediaType, InvalidArgument."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        async for chunk in request.chunks():
            yield chunk
        return
    if encoding != "gzip":
        raise UnsupportedMediaType("the only content encoding of an upload is gzip", {"Accept-Encoding": "gzip"})
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        async for chunk in request.chunks():
            rest = chunk
            while rest:
                if inflater.eof:  # a gzip file may consist of several members (RFC 1952, section 2.2)
                    inflater = zlib.decompressobj(_GZIP_WINDOW)
                # In pieces, because a small body may hold a huge file.
                if inflated := inflater.decompress(rest, _INFLATED_PIECE):
                    yield inflated
                rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    except zlib.error as error:
        raise InvalidArgument("the body is not valid gzip") from error
    if not inflater.eof:
        raise InvalidArgument("the gzip body ends too early")
