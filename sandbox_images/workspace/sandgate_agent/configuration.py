"""What the control plane has told the agent about its sandbox, and the endpoint through which it does (POST /init)."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from sandgate_agent.asgi import Request
from sandgate_agent.errors import InvalidArgument, Unauthenticated
from sandgate_agent.fields import check_environment
from sandgate_agent.token_file import write_token

CONTROL_TOKEN_DIGEST = "SANDGATE_CONTROL_TOKEN_SHA256"
"""The variable with which a container is made. The token itself is in no container, where root could read it."""

_BODY_LIMIT = 1 << 20


def is_same_secret(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


def has_digest(given: str, digest: str) -> bool:
    """Whether this is the SHA-256 of `given`, in hex."""
    return hmac.compare_digest(hashlib.sha256(given.encode()).hexdigest(), digest)


@dataclass(frozen=True, slots=True)
class Configuration:
    sandbox_id: str
    access_token: str = field(repr=False)
    template_id: str = ""
    team_id: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    default_user: str = "user"
    default_directory: str = ""
    """Where processes start that ask for no directory; empty for the user's home."""
    stdio_token: str | None = field(default=None, repr=False)
    """None closes the stdio door."""
    mcp_token: str | None = field(default=None, repr=False)


def parse_configuration(body: bytes) -> Configuration:
    """Read the body of /init (ARCHITECTURE.md, section 6.1). Raises: InvalidArgument, naming the field."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the body is not valid JSON") from error
    if not isinstance(message, dict):
        raise InvalidArgument("the body must be a JSON object")

    def text(name: str) -> str | None:
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"{name} must be a string")
        return value

    sandbox_id, access_token = text("sandboxId"), text("accessToken")
    if not sandbox_id or not access_token:
        raise InvalidArgument("sandboxId and accessToken are required")
    environment = message.get("envs") or {}
    if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
        raise InvalidArgument("envs must map names to strings")
    check_environment(environment)
    return Configuration(
        sandbox_id=sandbox_id,
        access_token=access_token,
        template_id=text("templateId") or "",
        team_id=text("teamId") or "",
        environment=environment,
        default_user=text("defaultUser") or "user",
        default_directory=text("defaultWorkdir") or "",
        stdio_token=text("stdioToken"),
        mcp_token=text("mcpToken"),
    )


class ConfigurationHolder:
    """The configuration in force: none until the first /init, then always the last one."""

    def __init__(self, *, control_token_digest: str, mcp_token_path: str, facts_directory: str) -> None:
        self._control_token_digest = control_token_digest
        self._mcp_token_path = mcp_token_path
        self._facts_directory = facts_directory
        self._current: Configuration | None = None

    @property
    def current(self) -> Configuration:
        """Raises: Unauthenticated before the first /init."""
        if self._current is None:
            raise Unauthenticated("the sandbox is not configured yet")
        return self._current

    def check_access_token(self, given: str | None) -> None:
        """Raises: Unauthenticated."""
        if given is None:
            raise Unauthenticated("the X-Access-Token header is missing")
        if not is_same_secret(given, self.current.access_token):
            raise Unauthenticated("the access token is invalid")

    def is_stdio_token(self, given: str) -> bool:
        expected = self._current.stdio_token if self._current else None
        return bool(expected) and is_same_secret(given, expected or "")

    async def handle_init(self, request: Request) -> None:
        """Raises: Unauthenticated, InvalidArgument. Safe to repeat; the last call wins."""
        if not has_digest(request.headers.get("x-control-token", ""), self._control_token_digest):
            raise Unauthenticated("the control token is missing or invalid")
        configuration = parse_configuration(await request.body(limit=_BODY_LIMIT))
        if configuration.mcp_token:
            write_token(self._mcp_token_path, configuration.mcp_token)
        self._write_facts(configuration)
        self._current = configuration
        await request.answer(204)

    async def handle_environment(self, request: Request) -> None:
        """GET /envs: the sandbox's own variables."""
        await request.answer_json(200, dict(self.current.environment), {"Cache-Control": "no-store"})

    def _write_facts(self, configuration: Configuration) -> None:
        """Leave the files by which programs of E2B's templates recognise a sandbox."""
        os.makedirs(self._facts_directory, mode=0o755, exist_ok=True)
        facts = {
            ".E2B_SANDBOX": "true",
            ".E2B_SANDBOX_ID": configuration.sandbox_id,
            ".E2B_TEMPLATE_ID": configuration.template_id,
        }
        for name, value in facts.items():
            with open(os.path.join(self._facts_directory, name), "w", encoding="utf-8") as file:
                file.write(value)
