"""Resource URIs in the sandbox. Pure: what each server lists in, a two-way map out.

A URI stays the server's own unless two servers really use the same one. Then it carries the server's name as its first
part: `test://data/1` of server `a` becomes `test://a/data/1`, `memo:x` becomes `memo:a/x`. http and https URIs are
never rewritten, because clients may fetch those themselves; where two servers list the same, the first one answers.
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from sandgate_gateway.uri_templates import UriTemplate

_SPLIT = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(//)?(.*)$", re.DOTALL)
_NEVER_REWRITTEN = frozenset({"http", "https"})


class UriMap:
    """Who owns a URI, and what it is called outside and inside."""

    def __init__(self, uris: Mapping[str, Iterable[str]], templates: Mapping[str, Iterable[str]]) -> None:
        """URIs and URI templates that each server lists, servers in the order of the configuration."""
        self._owners: dict[str, list[str]] = {}
        for server, listed in uris.items():
            for uri in dict.fromkeys(listed):
                self._owners.setdefault(uri, []).append(server)
        template_owners: dict[str, list[str]] = {}
        for server, listed in templates.items():
            for template in dict.fromkeys(listed):
                template_owners.setdefault(template, []).append(server)
        self._templates = [
            (server, text, UriTemplate(text)) for text, servers in template_owners.items() for server in servers
        ]
        self._shared = {uri for uri, servers in self._owners.items() if len(servers) > 1}
        self._shared |= {template for template, servers in template_owners.items() if len(servers) > 1}
        self._shared_templates: dict[str, list[UriTemplate]] = {}
        for server, text, pattern in self._templates:
            if text in self._shared:
                self._shared_templates.setdefault(server, []).append(pattern)
        self._give_way(template_owners)
        self._servers = frozenset(uris) | frozenset(templates)

    def _give_way(self, template_owners: Mapping[str, list[str]]) -> None:
        """A URI that is unique but equals a rewritten one is rewritten too, until nothing is ambiguous."""
        tables = (self._owners, template_owners)
        unseen = list(self._shared)
        while unseen:
            uri = unseen.pop()
            rewritten = {with_server(uri, owner) for table in tables for owner in table.get(uri, ())}
            clash = {other for other in rewritten - self._shared if any(other in table for table in tables)}
            self._shared |= clash
            unseen += clash

    @property
    def is_identity(self) -> bool:
        """Whether no URI needs rewriting: answers can pass unread."""
        return not self._shared

    def expose(self, server: str, uri: str) -> str:
        """The URI (or URI template) of a server as clients see it."""
        if not self._shared:
            return uri
        if uri in self._shared or any(template.matches(uri) for template in self._shared_templates.get(server, ())):
            return with_server(uri, server)
        owners = self._owners.get(uri)
        # A server may mention what it does not list; left alone, such a URI would lead to the server that lists it.
        return with_server(uri, server) if owners and server not in owners else uri

    def resolve(self, uri: str) -> list[tuple[str, str]]:
        """The (server, own URI) pairs a client's URI can mean, the best first; empty if no server is known for it."""
        if self._shared and (rewritten := self._without_server(uri)):
            return [rewritten]
        if owners := self._owners.get(uri):
            return [(server, uri) for server in owners]
        return [(server, uri) for server, _, template in self._templates if template.matches(uri)]

    def resolve_template(self, template: str) -> list[tuple[str, str]]:
        """The same for a URI template, as completion references name it."""
        if self._shared and (rewritten := self._without_server(template)):
            return [rewritten]
        return [(server, template) for server, known, _ in self._templates if known == template]

    def _without_server(self, uri: str) -> tuple[str, str] | None:
        parts = _SPLIT.match(uri)
        if parts is None:
            return None
        scheme, slashes, rest = parts.groups(default="")
        head, slash, own_rest = rest.partition("/")
        server = unquote(head)
        if not slash or server not in self._servers:
            return None
        own = f"{scheme}:{slashes}{own_rest}"
        return (server, own) if self.expose(server, own) == uri else None


def with_server(uri: str, server: str) -> str:
    """The URI with the server's name as its first part; itself if its scheme is fetched by clients, or it has none."""
    parts = _SPLIT.match(uri)
    if parts is None or parts[1].lower() in _NEVER_REWRITTEN:
        return uri
    scheme, slashes, rest = parts.groups(default="")
    return f"{scheme}:{slashes}{quote(server, safe='')}/{rest}"
