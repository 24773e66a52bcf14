"""Cursors of merged lists: opaque to clients, meaningful in this process only. Pure."""

import base64
import binascii
import hashlib
import hmac

from sandgate_gateway.jsonrpc import RpcError
from sandgate_gateway.protocol import INVALID_PARAMS

_MAC_LENGTH = 12


class Cursors:
    """Seals positions, so that a made-up cursor is told from a real one."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, kind: str, position: int) -> str:
        payload = f"{kind}:{position}".encode()
        return base64.urlsafe_b64encode(self._mac(payload) + payload).decode().rstrip("=")

    def open(self, kind: str, cursor: object) -> int:
        """Raises: RpcError if this is no cursor of this list."""
        try:
            sealed = base64.urlsafe_b64decode(f"{cursor}{'=' * (-len(str(cursor)) % 4)}")
        except (binascii.Error, ValueError):
            sealed = b""
        mac, payload = sealed[:_MAC_LENGTH], sealed[_MAC_LENGTH:]
        found_kind, _, position = payload.partition(b":")
        if not hmac.compare_digest(mac, self._mac(payload)) or found_kind != kind.encode():
            raise RpcError(INVALID_PARAMS, "Invalid cursor")
        return int(position)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)[:_MAC_LENGTH]
