"""Who calls: `X-API-KEY`, as the E2B SDKs send it, or `Authorization: Bearer`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.accounts import Team
from app.api.dependencies import AccountsDep

_header = APIKeyHeader(name="X-API-KEY", auto_error=False)
_bearer = HTTPBearer(auto_error=False)


async def _presented_key(
    key: Annotated[str | None, Depends(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> str | None:
    return key or (bearer.credentials if bearer is not None else None)


PresentedKey = Annotated[str | None, Depends(_presented_key)]
"""As it was sent; whether it is one is `CurrentTeam`'s question."""


async def _current_team(accounts: AccountsDep, key: PresentedKey) -> Team:
    return await accounts.authenticate(key)


CurrentTeam = Annotated[Team, Depends(_current_team)]
