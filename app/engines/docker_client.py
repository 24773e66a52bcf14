"""The border to the official Docker SDK: its blocking calls in a bounded thread pool, its errors in our terms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import kwargs_from_env

from app.errors import EngineError, EngineOutOfSpace, EngineUnavailable, ImageMissing

T = TypeVar("T")

_FULL_DISK = ("no space left on device", "disk quota exceeded")


@contextmanager
def docker_errors_mapped(doing: str, *, image: str = "") -> Iterator[None]:
    """Translate what the SDK raises while `doing` something ("start pod x: create gateway").

    | the SDK raises                                | and we raise      |
    |-----------------------------------------------|-------------------|
    | `requests` cannot connect or waits too long   | EngineUnavailable |
    | `urllib3` loses the connection in an answer   | EngineUnavailable |
    | 404 for an image                              | ImageMissing      |
    | any answer that tells of a full disk          | EngineOutOfSpace  |
    | anything else                                 | EngineError       |
    """
    try:
        yield
    except ImageNotFound as error:
        raise ImageMissing(image) from error
    except APIError as error:
        reason = str(error.explanation or error)
        if any(words in reason for words in _FULL_DISK):
            raise EngineOutOfSpace(f"Could not {doing}: the engine's disk is full. Free space there.") from error
        raise EngineError(f"Could not {doing}: {reason}") from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        # The SDK reads streams past `requests`, which would have translated what `urllib3` raises.
        raise EngineUnavailable(f"Could not {doing}: the Docker Engine does not answer.") from error
    except DockerException as error:
        # The first call asks for the API version, and the SDK wraps whatever goes wrong then.
        if isinstance(error.__cause__, (requests.exceptions.RequestException, OSError)):
            raise EngineUnavailable(f"Could not {doing}: the Docker Engine does not answer.") from error
        raise EngineError(f"Could not {doing}: {error}") from error


class DockerClient:
    """Calls of the low-level SDK client, one thread each, at most `max_workers` at a time.

    Connects at the first call and again after a failed one, so an engine that was away does no lasting harm.
    """

    def __init__(self, *, base_url: str | None, max_workers: int, timeout_s: int) -> None:
        """`base_url` None means `DOCKER_HOST` (with `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH`) or the default socket.

        `timeout_s` bounds each wait for the engine, `2 * timeout_s` a whole call.
        """
        self._connection = {"base_url": base_url} if base_url else kwargs_from_env()
        self._max_workers = max_workers
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="docker")
        self._api: docker.APIClient | None = None

    def submit(self, work: Callable[[docker.APIClient], T], *, doing: str, image: str = "") -> asyncio.Future[T]:
        """Begin `work` in a thread. It runs to its end whatever becomes of the caller."""

        def run() -> T:
            try:
                with docker_errors_mapped(doing, image=image):
                    return work(self._connected())
            except EngineUnavailable:
                self._api = None  # what comes back may be another version of the engine
                raise

        return asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def call(
        self, work: Callable[[docker.APIClient], T], *, doing: str, image: str = "", timeout_s: float | None = None
    ) -> T:
        """Raises: EngineUnavailable, ImageMissing (for `image`), EngineOutOfSpace, EngineError."""
        return await self.bounded(self.submit(work, doing=doing, image=image), doing=doing, timeout_s=timeout_s)

    async def bounded(self, running: asyncio.Future[T], *, doing: str, timeout_s: float | None = None) -> T:
        try:
            async with asyncio.timeout(timeout_s or 2 * self._timeout_s):
                return await running
        except TimeoutError as error:
            raise EngineUnavailable(f"Could not {doing}: the Docker Engine took too long.") from error

    def _connected(self) -> docker.APIClient:
        api = self._api
        if api is None:
            # "auto" asks the engine for its API version: Engine 20.10 speaks 1.41, recent ones no longer do.
            # Two threads that both come first make a client each: better than one waiting out the other's time limit.
            api = docker.APIClient(
                version="auto", timeout=self._timeout_s, max_pool_size=self._max_workers, **self._connection
            )
            self._api = api
        return api

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._api is not None:
            self._api.close()
