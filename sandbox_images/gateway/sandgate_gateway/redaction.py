"""Keeping the configured secrets of a server out of what people get to read. Pure."""

from collections.abc import Iterable

MIN_LENGTH = 6
"""Shorter values are flags, ports and names; replacing them would make every message unreadable."""

MASK = "***"


class Redactor:
    """Replaces the values of one server's environment and headers in text."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {value.strip() for value in values}
        # "Authorization: Bearer <secret>": a server may print the secret without the scheme.
        parts |= {part for value in list(parts) for part in value.split()}
        # The longest first, so that a value that contains another is not left half visible.
        self._secrets = sorted((part for part in parts if len(part) >= MIN_LENGTH), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text
