"""Encrypts what must not lie in the database in clear: credentials, tokens, environments.

The key file holds one Fernet key a line (cryptography.io/en/latest/fernet): the first encrypts, all decrypt. Rotation
puts a new key in front; once everything stored has been encrypted anew, the old ones can go.
"""

from __future__ import annotations

from pathlib import Path

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.errors import SandgateError
from app.home import write_file


class VaultError(SandgateError):
    """A stored secret cannot be read, or the key file is unusable."""


class Vault:
    def __init__(self, key_file: Path) -> None:
        """Read the keys; a missing file is made (mode 0600) with one fresh key."""
        self._key_file = key_file
        if not key_file.exists():
            _write_keys(key_file, [Fernet.generate_key()])
        self._keys = key_file.read_bytes().split()
        try:
            self._fernet = MultiFernet([Fernet(key) for key in self._keys])
        except ValueError as error:
            raise VaultError(f"{key_file} must hold one Fernet key a line; restore it from a backup.") from error

    def encrypt(self, value: object) -> str:
        """Any JSON value as a token of printable characters."""
        return self._fernet.encrypt(orjson.dumps(value)).decode()

    def decrypt(self, token: str) -> object:
        """Raises: VaultError when no key of the file fits."""
        try:
            return orjson.loads(self._fernet.decrypt(token))
        except InvalidToken as error:
            raise VaultError(
                f"A stored secret was encrypted with a key that is not in {self._key_file}; restore that file."
            ) from error

    def renew(self, token: str) -> str:
        """The same value, encrypted with the first key."""
        return self._fernet.rotate(token).decode()

    def add_key(self) -> None:
        """Put a fresh key in front. Everything stored stays readable."""
        self._replace_keys([Fernet.generate_key(), *self._keys])

    def forget_old_keys(self) -> None:
        """Keep the first key only. Call it once everything stored has been renewed."""
        self._replace_keys(self._keys[:1])

    def _replace_keys(self, keys: list[bytes]) -> None:
        _write_keys(self._key_file, keys)
        self._keys = keys
        self._fernet = MultiFernet([Fernet(key) for key in keys])


def _write_keys(key_file: Path, keys: list[bytes]) -> None:
    write_file(key_file, b"\n".join(keys) + b"\n")
