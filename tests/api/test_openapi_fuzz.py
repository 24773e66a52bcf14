"""Every operation of the OpenAPI document, with input made from it: valid, and broken in one place or another.

Whatever comes in, the answer is not an internal error. The cases are the same in every run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, reject, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from tests.api.calls import create
from tests.pods import PodTransport

_EXAMPLES = 6
"""Of each operation and kind: made-up ids or those of things that are there, valid input or broken."""
_DEADLINE_S = 30.0

_Operation = APIOperation[Any, Any, Any, Any]


async def make_known(api: httpx.AsyncClient, number: int) -> dict[str, str]:
    """Path parameters that name something, and the token of the volume."""
    sandbox = await create(api, timeout=3600)
    volume = (await api.post("/volumes", json={"name": f"data-{number}"})).json()
    secret = (await api.post("/secrets", json={"name": f"key-{number}", "value": "v"})).json()
    return {
        "sandboxID": sandbox["sandboxID"],
        "volumeID": volume["volumeID"],
        "volumeToken": volume["token"],
        "secretID": secret["secretID"],
        "templateID": "base",
    }


async def test_no_input_leads_to_an_internal_error(app: FastAPI, api: httpx.AsyncClient, pods: PodTransport) -> None:
    pods.metrics = {"cpu_count": 1, "cpu_used_pct": 0.5} | dict.fromkeys(
        ("ts", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"), 1
    )
    loop = asyncio.get_running_loop()
    failures: list[str] = []
    statuses: list[int] = []
    for number, operation in enumerate(_operations(app)):
        # Made anew each time, because some operations are there to remove them.
        known = await make_known(api, number)

        def send(case: Case[Any], token: str = known["volumeToken"]) -> int:
            """From the thread in which cases are made to the loop on which the application runs."""
            status = asyncio.run_coroutine_threadsafe(_send(api, case, token), loop).result(_DEADLINE_S)
            statuses.append(status)
            return status

        for kind in _kinds(operation, known):
            failures += await asyncio.to_thread(_first_failure, operation, kind, send)
    assert not failures, "\n".join(failures)
    assert {200, 201, 204, 400, 404} <= set(statuses)
    assert len(statuses) > 500


def _operations(app: FastAPI) -> Iterator[_Operation]:
    for operation in schemathesis.openapi.from_dict(app.openapi()).get_all_operations():
        assert isinstance(operation, Ok), operation
        yield operation.ok()


def _kinds(operation: _Operation, known: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Arguments of the strategies that make an operation's cases."""
    names = {parameter.name for parameter in operation.path_parameters}
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        yield {"generation_mode": mode}
        if names and names <= known.keys():
            yield {"generation_mode": mode, "path_parameters": {name: known[name] for name in names}}


def _first_failure(operation: _Operation, kind: dict[str, Any], send: Callable[[Case[Any]], int]) -> list[str]:
    """Empty if there is none."""
    found: list[str] = []

    @settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(**kind))
    def ask(case: Case[Any]) -> None:
        try:
            status = send(case)
        except httpx.InvalidURL:
            reject()  # too long for any client to send
        if status >= 500 and not found:
            found.append(f"{status}: {case.as_curl_command()}")

    with suppress(Unsatisfiable):  # an operation without input cannot be asked wrongly
        ask()
    return found


async def _send(api: httpx.AsyncClient, case: Case[Any], volume_token: str) -> int:
    wire = requests.Request(**case.as_transport_kwargs(base_url="http://gate")).prepare()
    credentials = {"X-API-KEY": api.headers["X-API-KEY"]}
    if "/volumecontent/" in case.path:
        credentials = {"Authorization": f"Bearer {volume_token}"}
    headers = [(name.encode("latin-1", "replace"), _bytes(value)) for name, value in wire.headers.items()]
    answer = await api.request(
        wire.method or "GET",
        wire.url or "",
        headers=[
            *((name, value) for name, value in headers if name.lower() not in (b"authorization", b"x-api-key")),
            *((name.encode(), value.encode()) for name, value in credentials.items()),
        ],
        content=_bytes(wire.body) if wire.body is not None else None,
    )
    return answer.status_code


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value)
