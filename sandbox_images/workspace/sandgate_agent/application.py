"""The agent's HTTP surface: which path leads where, who may pass, and how an error looks."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from sandgate_agent.asgi import Receive, Request, Scope, Send
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.connect_rpc import Call, Method, error_message, error_status, parse_timeout, serve_call
from sandgate_agent.errors import AgentError, ClientGone, MethodNotAllowed, NotFound, Unimplemented
from sandgate_agent.users import find_user, user_named_by

_log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[None]]


class Application:
    def __init__(
        self,
        configuration: ConfigurationHolder,
        *,
        open_endpoints: Mapping[tuple[str, str], Endpoint],
        endpoints: Mapping[tuple[str, str], Endpoint],
        methods: Mapping[str, Method],
    ) -> None:
        """Endpoints by method and path; the open ones check their callers themselves. Calls by path."""
        self._configuration = configuration
        self._open_endpoints = open_endpoints
        self._endpoints = endpoints
        self._paths = {path for _, path in (*open_endpoints, *endpoints)}
        self._methods = methods
        self._services = {path.rpartition("/")[0] + "/" for path in methods}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            await self._route(request)
        except ClientGone:
            return
        except AgentError as error:
            if request.answered:
                raise
            await request.answer_json(error.status, {"code": error.status, "message": error.message}, error.headers)
        except Exception:  # the last handler: one broken request must not say why to the caller, nor end the agent
            if request.answered:
                raise
            _log.exception("request_failed method=%s path=%s", request.method, request.path)
            await request.answer_json(500, {"code": 500, "message": "internal error of the agent"})

    async def _route(self, request: Request) -> None:
        if endpoint := self._open_endpoints.get((request.method, request.path)):
            await endpoint(request)
            return
        self._configuration.check_access_token(request.headers.get("x-access-token"))
        if endpoint := self._endpoints.get((request.method, request.path)):
            await endpoint(request)
        elif request.path in self._paths:
            raise MethodNotAllowed(f"{request.method} is not possible on {request.path}")
        else:
            await self._serve_call(request)

    async def _serve_call(self, request: Request) -> None:
        try:
            method = self._methods.get(request.path)
            if method is None:
                if any(request.path.startswith(service) for service in self._services):
                    raise Unimplemented(f"{request.path} is not a method of this agent")
                raise NotFound(f"nothing is served at {request.path}")
            await serve_call(request, method, self._call(request))
        except AgentError as error:
            if request.answered:
                raise
            await request.answer_json(error_status(error), error_message(error), error.headers)

    def _call(self, request: Request) -> Call:
        current = self._configuration.current
        return Call(
            user=find_user(user_named_by(request.headers.get("authorization")) or current.default_user),
            default_directory=current.default_directory,
            timeout_s=parse_timeout(request.headers),
        )
