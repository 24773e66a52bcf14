"""A create that succeeds, and what every error of the API looks like."""

from __future__ import annotations

from typing import Any

import httpx


async def create(api: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    answer = await api.post("/v2/sandboxes", json={"templateID": "base", **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def assert_error(answer: httpx.Response, status: int, *words: str) -> None:
    """Status and body agree, and the body has exactly the fields the SDKs parse."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"code", "message"}
    assert body["code"] == status
    for word in words:
        assert word in body["message"]
