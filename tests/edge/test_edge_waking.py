"""Traffic for paused sandboxes: which is resumed, how often, and what is answered when that does not work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.edge.answers import Refusal
from app.edge.waking import Waker
from app.errors import Conflict, EngineAway, NotFound, OutOfSpace, Problem
from tests.edge.applications import Echo, mirror
from tests.edge.conftest import Front, to
from tests.edge.serving import Pod, new_address
from tests.waiting import BOUND_S, until

TRANSITION = "The sandbox is still transitioning. Try again in a moment."


class Resuming:
    """Resumes a sandbox when it is let go on, or fails."""

    def __init__(self, front: Front, running: Pod) -> None:
        self.calls: list[str] = []
        self.go_on = asyncio.Event()
        self.failure: Problem | None = None
        self._front = front
        self._running = running
        front.pods.on_resume = self
        front.pods.add(replace(running, address=None, may_resume=True))

    async def __call__(self, sandbox_id: str) -> None:
        self.calls.append(sandbox_id)
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        if self.failure is not None:
            raise self.failure
        self._front.pods.add(self._running)


@pytest.fixture
def running(front: Front) -> Pod:
    pod = Pod("iwoken", new_address())
    front.serve(pod, mirror, port=8000)
    front.serve(pod, Echo(), port=8888)
    return pod


@pytest.fixture
def resuming(front: Front, running: Pod) -> Resuming:
    return Resuming(front, running)


async def test_a_request_resumes_the_sandbox_and_is_then_answered(
    resuming: Resuming, running: Pod, client: httpx.AsyncClient
) -> None:
    resuming.go_on.set()
    response = await client.post("/x?y=1", headers=to(running, 8000), content=b"body")
    assert response.status_code == 200
    assert (response.json()["target"], response.json()["body"]) == ("/x?y=1", "body")
    assert (await client.get("/", headers=to(running, 8000))).status_code == 200
    assert resuming.calls == ["iwoken"]


async def test_requests_that_come_together_resume_it_once(
    resuming: Resuming, running: Pod, client: httpx.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(client.get("/", headers=to(running, 8000))) for _ in range(20)]
        await until(lambda: resuming.calls)
        requests.append(group.create_task(client.get("/", headers=to(running, 8000))))
        resuming.go_on.set()
    assert [request.result().status_code for request in requests] == [200] * 21
    assert resuming.calls == ["iwoken"]


async def test_a_websocket_resumes_it_too(front: Front, resuming: Resuming, running: Pod) -> None:
    resuming.go_on.set()
    async with connect(front.ws(), additional_headers=to(running, 8888), proxy=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


async def test_a_client_that_gives_up_leaves_the_others_waiting(
    front: Front, resuming: Resuming, running: Pod, client: httpx.AsyncClient
) -> None:
    async with httpx.AsyncClient(base_url=front.url, timeout=BOUND_S) as impatient:
        first = asyncio.create_task(impatient.get("/", headers=to(running, 8000)))
        await until(lambda: resuming.calls)
        first.cancel()
        await asyncio.wait([first])
    second = asyncio.create_task(client.get("/", headers=to(running, 8000)))
    resuming.go_on.set()
    assert (await second).status_code == 200
    assert resuming.calls == ["iwoken"]


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (NotFound("gone"), 502, "The sandbox was not found"),
        (Conflict("it is being paused"), 409, TRANSITION),
        (EngineAway("The container engine does not answer."), 503, "The container engine does not answer."),
        (OutOfSpace("The disk is full."), 507, "The disk is full."),
    ],
    ids=["gone", "in transition", "engine away", "no space"],
)
async def test_a_resume_that_fails_says_why(
    front: Front,
    resuming: Resuming,
    running: Pod,
    client: httpx.AsyncClient,
    failure: Problem,
    status: int,
    message: str,
) -> None:
    resuming.failure = failure
    resuming.go_on.set()
    response = await client.get("/", headers=to(running, 8000))
    assert response.status_code == status
    assert response.json() == {"sandboxId": "iwoken", "message": message, "code": status}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(front.ws(), additional_headers=to(running, 8888), proxy=None):
            pass
    assert refused.value.response.status_code == status
    resuming.failure = None
    assert (await client.get("/", headers=to(running, 8000))).status_code == 200


async def test_a_sandbox_that_is_paused_again_at_once_is_in_transition(
    front: Front, running: Pod, client: httpx.AsyncClient
) -> None:
    async def to_no_avail(sandbox_id: str) -> None: ...

    front.pods.add(replace(running, address=None, may_resume=True))
    front.pods.on_resume = to_no_avail
    response = await client.get("/", headers=to(running, 8000))
    assert (response.status_code, response.json()["message"]) == (409, TRANSITION)


async def test_a_sandbox_that_traffic_must_not_resume_is_not_found(
    front: Front, resuming: Resuming, running: Pod, client: httpx.AsyncClient
) -> None:
    front.pods.add(replace(running, address=None, may_resume=False))
    response = await client.get("/", headers=to(running, 8000))
    assert response.status_code == 502
    assert response.content == b'{"sandboxId":"iwoken","message":"The sandbox was not found","code":502}'
    assert resuming.calls == []


async def test_a_sandbox_that_is_killed_while_it_is_resumed_is_not_found(
    front: Front, resuming: Resuming, running: Pod, client: httpx.AsyncClient
) -> None:
    request = asyncio.create_task(client.get("/", headers=to(running, 8000)))
    await until(lambda: resuming.calls)
    front.drop("iwoken")
    response = await request
    assert (response.status_code, response.json()["message"]) == (502, "The sandbox was not found")
    resuming.go_on.set()


async def test_a_resume_that_hangs_is_given_up() -> None:
    async def hang(sandbox_id: str) -> None:
        await asyncio.Event().wait()

    def spawn(work: Coroutine[Any, Any, Refusal | None]) -> asyncio.Task[Refusal | None]:
        return asyncio.create_task(work)

    refusal = await Waker(hang, spawn, timeout_s=0.01).wake("iwoken")
    assert refusal == Refusal(409, TRANSITION, "iwoken")
