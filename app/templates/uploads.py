"""Archives with the files of COPY steps: where they lie, and who may put one there.

They belong to a team and are named by a hash that the SDK takes of their files. The address to send one to is signed,
since the SDKs send no API key with it. A restart makes a new signing key: builds then have to ask for a new address.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

from app.errors import BodyTooLarge, InvalidRequest, OutOfSpace, Unauthorized

LINK_LIFETIME_S = 3600
"""The SDKs give an upload an hour."""
_KEEP_UNUSED = timedelta(days=7)
_HASH = re.compile(r"[0-9a-f]{64}")
_TAR_MAGIC = (257, b"ustar")
_GZIP_MAGIC = b"\x1f\x8b"
_EMPTY_TAR = bytes(512)


class Uploads:
    def __init__(self, folder: Path, *, largest_mib: int, now: Callable[[], datetime]) -> None:
        self._folder = folder
        self._largest_mib = largest_mib
        self._now = now
        self._key = secrets.token_bytes(32)

    def find(self, team_id: str, files_hash: str) -> Path | None:
        """The archive, which counts as used from then on. Raises: InvalidRequest."""
        file = self._file(team_id, files_hash)
        try:
            os.utime(file, (self._now().timestamp(),) * 2)
        except FileNotFoundError:
            return None
        return file

    def sign(self, team_id: str, files_hash: str) -> dict[str, str]:
        """Query parameters with which one archive may be sent. Raises: InvalidRequest."""
        self._file(team_id, files_hash)
        expires = str(int(self._now().timestamp()) + LINK_LIFETIME_S)
        return {"team": team_id, "expires": expires, "signature": self._signature(team_id, files_hash, expires)}

    async def receive(
        self, files_hash: str, *, team: str, expires: str, signature: str, body: AsyncIterator[bytes]
    ) -> None:
        """Keep an archive, all of it or nothing.

        Raises: Unauthorized, InvalidRequest (not a tar), BodyTooLarge, OutOfSpace.
        """
        if not hmac.compare_digest(signature.encode(), self._signature(team, files_hash, expires).encode()):
            raise Unauthorized("The signature of this upload address is not valid. Ask for a new one.")
        if int(expires) < self._now().timestamp():
            raise Unauthorized("This upload address has expired. Ask for a new one.")
        file = self._file(team, files_hash)
        fresh = file.with_name(f"{file.name}.{secrets.token_hex(8)}.new")
        await asyncio.to_thread(file.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = await asyncio.to_thread(os.open, fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                await self._fill(out.write, body)
            await asyncio.to_thread(_check_archive, fresh)
            await asyncio.to_thread(fresh.replace, file)
        except OSError as error:
            raise OutOfSpace(f"The upload cannot be kept: {error.strerror}.") from error
        finally:
            fresh.unlink(missing_ok=True)

    def remove_unused(self) -> None:
        """Archives that no build has used for a week, and what was cut off on its way here."""
        begin = (self._now() - _KEEP_UNUSED).timestamp()
        for file in self._folder.glob("*/*"):
            try:
                modified = file.stat().st_mtime
                is_cut_off = file.suffix == ".new" and modified < time.time() - LINK_LIFETIME_S
                if modified < begin or is_cut_off:
                    file.unlink()
            except FileNotFoundError:
                continue

    async def _fill(self, write: Callable[[bytes], object], body: AsyncIterator[bytes]) -> None:
        size = 0
        async for chunk in body:
            size += len(chunk)
            if size > self._largest_mib * 1024 * 1024:
                raise BodyTooLarge(
                    f"The files of one COPY are larger than {self._largest_mib} MiB."
                    " Leave out what is not needed, or raise SANDGATE_UPLOAD_LIMIT_MIB."
                )
            await asyncio.to_thread(write, chunk)

    def _file(self, team_id: str, files_hash: str) -> Path:
        if not _HASH.fullmatch(files_hash):
            raise InvalidRequest("The hash of files must be a SHA-256 in lower-case hexadecimal.")
        return self._folder / team_id / files_hash

    def _signature(self, team_id: str, files_hash: str, expires: str) -> str:
        return hmac.new(self._key, f"{team_id}\n{files_hash}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _check_archive(file: Path) -> None:
    """Raises: InvalidRequest for what is no tar, packed with gzip or not."""
    with file.open("rb") as content:
        head = content.read(512)
    offset, magic = _TAR_MAGIC
    is_tar = head[offset:].startswith(magic) or head == _EMPTY_TAR
    if not (is_tar or head.startswith(_GZIP_MAGIC)):
        raise InvalidRequest("The upload is not a tar archive.")
