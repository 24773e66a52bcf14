"""The paths that are being uploaded to, so that an upload that breaks off does not remove what another has written.

There may be two at a time: a caller whose connection was lost repeats its upload before the loss is noticed here.
"""

from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakValueDictionary


@dataclass
class UploadTarget:
    """A path, shared by all uploads that write to it at the same time."""

    path: str
    lock: Lock = field(default_factory=Lock, repr=False)
    """Held while one of them opens the file, and while one closes it and may remove it."""
    uploads: int = 0
    """How many have the file open."""
    is_unfinished: bool = False
    """Whether one of them created the file and none has finished it."""


class UploadTargets:
    """Keeps a target for as long as somebody else does."""

    def __init__(self) -> None:
        self._by_path: WeakValueDictionary[str, UploadTarget] = WeakValueDictionary()

    def at(self, path: str) -> UploadTarget:
        """The same one for all who ask while it is in use."""
        target = self._by_path.get(path)
        if target is None:
            target = self._by_path[path] = UploadTarget(path)
        return target
