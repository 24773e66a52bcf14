"""What the sandbox images are made of, read once: their tags and their build contexts come from the same bytes."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import EngineError

_FOLDERS = {
    "base": ("base",),
    "workspace": ("workspace",),
    "gateway": ("gateway", "stdio_bridge"),
}
"""Image -> folders that belong to it."""


@dataclass(frozen=True, slots=True)
class ImageTags:
    base: str
    workspace: str
    gateway: str


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    """Path in the build context."""
    is_executable: bool
    """What git keeps of a file's mode; the rest depends on the umask of whoever checked it out."""
    content: bytes


class ImageSources:
    def __init__(self, source: Path, *, base_image: str, ca_bundle: Path | None) -> None:
        """Raises: EngineError when `source` or `ca_bundle` cannot be read."""
        certificates = _File("ca-bundle.crt", False, _read_certificates(ca_bundle))
        try:
            self._files = {image: list(_read(source, folders)) for image, folders in _FOLDERS.items()}
        except OSError as error:
            raise EngineError(f"The sources of the sandbox images cannot be read: {error}") from error
        self._files["base"].append(certificates)
        base = self._tag("base", base_image)
        self.tags = ImageTags(base=base, workspace=self._tag("workspace", base), gateway=self._tag("gateway", base))

    def context(self, image: str) -> io.BytesIO:
        """The build context as a tar archive. Nothing in it depends on when or by whom the files were written."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file in self._files[image]:
                entry = tarfile.TarInfo(file.name)
                entry.size = len(file.content)
                entry.mode = 0o755 if file.is_executable else 0o644
                archive.addfile(entry, io.BytesIO(file.content))
        packed.seek(0)
        return packed

    def _tag(self, image: str, below: str) -> str:
        digest = hashlib.sha256(f"{below}\0".encode())
        for file in self._files[image]:
            digest.update(f"{file.name}\0{file.is_executable}\0{len(file.content)}\0".encode())
            digest.update(file.content)
        return f"sandgate/{image}:{digest.hexdigest()[:12]}"


def _read(source: Path, folders: Iterable[str]) -> Iterator[_File]:
    """All files in a fixed order, but for what Python and editors leave behind."""
    for folder in folders:
        for path in sorted((source / folder).rglob("*")):
            name = path.relative_to(source)
            is_left_behind = any(part == "__pycache__" or part.startswith(".") for part in name.parts)
            if path.is_file() and not is_left_behind:
                yield _File(name.as_posix(), bool(path.stat().st_mode & 0o100), path.read_bytes())


def _read_certificates(ca_bundle: Path | None) -> bytes:
    if ca_bundle is None:
        return b""
    try:
        return ca_bundle.read_bytes()
    except OSError as error:
        raise EngineError(f"SANDGATE_CA_BUNDLE cannot be read: {error}") from error
