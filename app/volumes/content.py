"""What is in a volume, asked of the agent in the volume's pod."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import orjson

from app.errors import Conflict, EngineAway, InvalidRequest, NotFound, OutOfSpace, Problem, SandboxFailed
from app.sandboxes.pod_http import MIB, UnacceptableAnswerError, at_most
from app.volumes.pods import VolumePods

_PROBLEMS: Mapping[int, type[Problem]] = {
    problem.status: problem for problem in (InvalidRequest, NotFound, Conflict, OutOfSpace)
}
_ATTEMPTS = 2
_MOST: Mapping[tuple[str, str], int | None] = {("GET", "/dir"): 32 * MIB, ("GET", "/file"): None}
"""Bytes of an answer by method and `where`; others are small. A file is passed on as it comes."""
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""Without a byte in either direction; a whole transfer may take as long as it takes."""


class VolumeContent:
    def __init__(self, pods: VolumePods, http: httpx.AsyncClient) -> None:
        self._pods = pods
        self._http = http

    @asynccontextmanager
    async def ask(
        self,
        volume_id: str,
        method: str,
        where: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The agent's answer, its body not read yet. `where` is `/path`, `/dir` or `/file`.

        Raises: InvalidRequest, NotFound, Conflict, OutOfSpace as the agent refuses; EngineAway, SandboxFailed if it
        cannot be asked; InvalidRequest for a listing that is too large, also while the body is being read.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            async with self._pods.serving(volume_id) as pod:
                request = self._http.build_request(
                    method,
                    f"{pod.url}{where}",
                    params=dict(query),
                    headers={"Accept-Encoding": "identity", **(headers or {}), "X-Control-Token": pod.token},
                    content=body,
                    timeout=_TIMEOUT,
                    extensions=at_most(_MOST[method, where]) if (method, where) in _MOST else None,
                )
                try:
                    answer = await self._send(request, is_last=attempt == _ATTEMPTS)
                    if answer is not None:
                        try:
                            await _raise_for_refusal(answer)
                            yield answer
                        finally:
                            await answer.aclose()
                        return
                except UnacceptableAnswerError as error:
                    raise _unacceptable(where, error) from error
            await self._pods.replace(pod)

    async def _send(self, request: httpx.Request, *, is_last: bool) -> httpx.Response | None:
        """None if nobody listens and it is worth another try; nothing of the body has been read then."""
        try:
            return await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if is_last:
                raise EngineAway("The volume's pod does not answer. Try again.") from error
            return None
        except httpx.TransportError as error:
            raise EngineAway(f"The volume's pod broke off ({type(error).__name__}). Try again.") from error


def _unacceptable(where: str, error: UnacceptableAnswerError) -> Problem:
    if where == "/dir":
        return InvalidRequest(f"The listing has {error}. Ask for fewer levels, or for one directory after the other.")
    return SandboxFailed(f"The volume's pod answered with {error}.")


async def _raise_for_refusal(answer: httpx.Response) -> None:
    """Raises: Problem. A range outside of the file (416) is an answer like others."""
    if answer.status_code < 400 or answer.status_code == 416:
        return
    try:
        message = str(orjson.loads(await answer.aread())["message"])
    except (ValueError, KeyError, TypeError):
        message = f"it answered {answer.status_code}"
    problem = _PROBLEMS.get(answer.status_code)
    if problem is None:
        raise SandboxFailed(f"The volume's pod could not do it: {message}.")
    raise problem(f"{message[:1].upper()}{message[1:]}.")
