"""Whether a URI may come from an RFC 6570 template, in time that grows with their lengths alone. Pure.

Servers write the templates, and each URI that nobody lists is held against all of them: a regular expression that tries
one split after the other would let one template stop the gateway.
"""

import re

_EXPRESSION = re.compile(r"\{([^{}]*)\}")
_SEGMENT_END = re.compile(r"[/?#]")

MAX_EXPRESSIONS = 16
"""What follows after so many is taken for anything."""

MAX_URI = 16 * 1024
"""Characters of a URI that can come from a template."""


class UriTemplate:
    """Generous: `{x}` is anything up to a slash, `{+x}` is anything, and so is every expression after such a one."""

    def __init__(self, template: str) -> None:
        pieces = _EXPRESSION.split(template, maxsplit=MAX_EXPRESSIONS)
        self._head, *rest = pieces
        if len(pieces) > 2 * MAX_EXPRESSIONS and _EXPRESSION.search(pieces[-1]):
            rest[-1], rest[-2] = "", "+"
        self._gaps: list[tuple[bool, str]] = []
        """Expressions in their order: whether it stays within a segment, and the text that follows it."""
        is_narrow = True
        for expression, text in zip(rest[::2], rest[1::2], strict=True):
            is_narrow = is_narrow and expression[:1].isalnum() and not expression.endswith("*")
            self._gaps.append((is_narrow, text))

    def matches(self, uri: str) -> bool:
        if not self._gaps:
            return uri == self._head
        *gaps, (last_is_narrow, tail) = self._gaps
        position, end = len(self._head), len(uri) - len(tail)
        if not (position <= end and len(uri) <= MAX_URI and uri.startswith(self._head) and uri.endswith(tail)):
            return False
        for is_narrow, text in gaps:
            # The first place is as good as any: what it leaves over, the next expression takes up. And a text with a
            # slash in it can't be looked for beyond the first slash.
            found = uri.find(text, position, end)
            if found < 0 or (is_narrow and _SEGMENT_END.search(uri, position, found)):
                return False
            position = found + len(text)
        return not (last_is_narrow and _SEGMENT_END.search(uri, position, end))
