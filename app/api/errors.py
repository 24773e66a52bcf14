"""The one place where errors become answers: `{"code": <status>, "message": …}`, as the E2B contract has it.

The JavaScript SDK branches on the integer `code` in the body, the Python SDK on the status; both must agree.
"""

from __future__ import annotations

from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.errors import Problem

_log = structlog.get_logger()


class ErrorBody(BaseModel):
    code: int = Field(description="The HTTP status once more.", examples=[404])
    message: str = Field(description="What happened, and what to do.")
    error_code: str | None = Field(None, description="Tells problems of one status apart, where that is needed.")


def describe_errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    """For OpenAPI: the statuses a route may answer besides its success."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in (*statuses, 401)}


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_request: Request, problem: Problem) -> JSONResponse:
        headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s is not None else None
        code = {} if problem.error_code is None else {"error_code": problem.error_code}
        return _answer(problem.status, problem.message, headers, **code)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(400, "; ".join(_sentence(entry) for entry in error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return _answer(error.status_code, message, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
        return _answer(500, "An internal error, which is in the server's log.")


def _answer(status: int, message: str, headers: dict[str, str] | None = None, **more: str) -> JSONResponse:
    # It may quote what was sent, and JSON can say half of a surrogate pair, which UTF-8 cannot.
    message = message.encode(errors="replace").decode()
    return JSONResponse({"code": status, "message": message, **more}, status, headers)


def _sentence(entry: dict[str, object]) -> str:
    """One finding of the validation, without the value it was found in: that may be a credential."""
    location = entry["loc"]
    where = [str(part) for part in location] if isinstance(location, tuple) else []
    if entry["type"] == "json_invalid":
        return "The body is not valid JSON"
    if where[:1] == ["body"]:
        where = where[1:] or ["the body"]
    what = str(entry["msg"]).removeprefix("Value error, ")  # pydantic's words in front of ours
    return f"{'.'.join(where)}: {what}"
