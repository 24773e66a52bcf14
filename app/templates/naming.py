"""How templates and tags are named. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from app.errors import InvalidRequest
from app.templates.models import BUILT_IN, DEFAULT_TAG

_NAME = re.compile(r"[a-z0-9_-]{1,128}")
_TAG = re.compile(r"[a-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller writes for a template: `[<namespace>/]<name or id>[:<tag>]`."""

    name: str
    tag: str | None = None
    namespace: str | None = None

    def __str__(self) -> str:
        namespace = f"{self.namespace}/" if self.namespace else ""
        return f"{namespace}{self.name}" + (f":{self.tag}" if self.tag else "")


def parse_reference(text: str) -> Reference:
    """Upper case counts as lower case, as in E2B's API. Raises: InvalidRequest."""
    before, colon, tag = text.strip().lower().partition(":")
    namespace, slash, name = before.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not _NAME.fullmatch(namespace)):
        raise InvalidRequest(
            f"{_shortened(text)!r} does not name a template: a name has a to z, 0 to 9, - and _, at most 128 of them,"
            " a tag may follow it after a colon."
        )
    return Reference(name, check_tag(tag) if colon else None, namespace or None)


def parse_new_name(text: str) -> Reference:
    """A name that a team may give. Raises: InvalidRequest for one of Sandgate's own too."""
    reference = parse_reference(text)
    if reference.name in BUILT_IN:
        raise InvalidRequest(f"The template {reference.name!r} comes with Sandgate and cannot be replaced.")
    return reference


def check_tag(tag: str) -> str:
    """Trimmed and in lower case. Raises: InvalidRequest."""
    cleaned = tag.strip().lower()
    if not _TAG.fullmatch(cleaned):
        raise InvalidRequest(
            f"{_shortened(tag)!r} is not a tag: it has a to z, 0 to 9, -, _ and dots, at most 128 of them."
        )
    try:
        UUID(cleaned)
    except ValueError:
        return cleaned
    raise InvalidRequest(f"{cleaned!r} is not a tag: tags cannot look like the id of a build.")


def wanted_tags(reference: Reference, tags: Iterable[str]) -> tuple[str, ...]:
    """Without repetition; `default` if there is none. Raises: InvalidRequest."""
    named = ([reference.tag] if reference.tag else []) + [check_tag(tag) for tag in tags]
    return tuple(dict.fromkeys(named)) or (DEFAULT_TAG,)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
