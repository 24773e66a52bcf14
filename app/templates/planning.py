"""From the steps of a template to what the containers of its build do. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from app.engines.builds import RegistryLogin
from app.errors import InvalidRequest
from app.templates.models import Runs

REFUSED = 125
"""Exit code with which `sandbox_images/templates/step.py` says that a step cannot be done, and why in its last line."""

BASE_STEP = "base"
FINAL_STEP = "finalize"
READY_DEADLINE_S = 300
"""How long a ready command may take to succeed, as in E2B's builds."""
SETTLE_S = 10
"""How long a start command is watched where there is no ready command."""
_MOST_STEPS = 500

_FILES_HASH = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"0?[0-7]{3,4}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_PULL = re.compile(r"mcp-gateway pull((?: +[\w./-]+)+) *")
_PRIVATE = re.compile(r"sandgate(-[a-z0-9-]+)?/")
_IMAGE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", re.IGNORECASE)
_ADDRESS = re.compile(r"(localhost|[\d.]+|0x[\da-f]+|\[.*\])(:\d+)?", re.IGNORECASE)

StepKind = Literal["COPY", "RUN", "ENV", "WORKDIR", "USER"]
_LEAST_ARGUMENTS: Mapping[str, int] = {"COPY": 2, "RUN": 1, "ENV": 2, "WORKDIR": 1, "USER": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """As the SDKs send it."""

    kind: str
    args: tuple[str, ...]
    files_hash: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    from_image: str | None = None
    from_template: str | None = None
    login: RegistryLogin | None = field(default=None, repr=False)
    force: bool = False
    steps: tuple[Step, ...] = field(default=(), repr=False)
    start_command: str | None = field(default=None, repr=False)
    ready_command: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    name: str
    """Its number, counted from 1."""
    title: str
    failing: str
    """How the error begins if it fails: what was not possible."""
    action: Mapping[str, Any] | None = field(repr=False)
    """What `step.py` reads; None if the image stays as it is."""
    after: Runs
    """How commands run from here on."""
    force: bool = False
    files_hash: str | None = None
    servers: tuple[str, ...] = ()
    """Keys of MCP servers that `mcp-gateway pull` names; then there is no action."""


def check_request(request: BuildRequest) -> None:
    """What can be told before a build begins. Raises: InvalidRequest, naming the field."""
    if bool(request.from_image) == bool(request.from_template):
        raise InvalidRequest("Exactly one of fromImage and fromTemplate is needed.")
    if request.from_image:
        check_image_name(request.from_image)
    if len(request.steps) > _MOST_STEPS:
        raise InvalidRequest(f"steps: a template has at most {_MOST_STEPS} of them.")
    for number, step in enumerate(request.steps, start=1):
        if step.kind not in _LEAST_ARGUMENTS:
            known = ", ".join(_LEAST_ARGUMENTS)
            raise InvalidRequest(f"steps.{number}: there is no step of type {step.kind[:40]!r}, only {known}.")
        if len(step.args) < _LEAST_ARGUMENTS[step.kind] or (step.kind == "ENV" and len(step.args) % 2):
            raise InvalidRequest(f"steps.{number}: {step.kind} lacks an argument.")
        if step.kind == "COPY" and not (step.files_hash and _FILES_HASH.fullmatch(step.files_hash)):
            raise InvalidRequest(f"steps.{number}: COPY needs filesHash, a SHA-256 in lower-case hexadecimal.")
        if step.kind == "COPY" and len(step.args) > 3 and step.args[3] and not _MODE.fullmatch(step.args[3]):
            raise InvalidRequest(f"steps.{number}: the mode of COPY must be octal, such as 0755.")
        if step.kind == "ENV" and any(not name or "=" in name for name in step.args[::2]):
            raise InvalidRequest(f"steps.{number}: ENV has a name that no variable can have.")
        if any("\0" in argument for argument in step.args):
            raise InvalidRequest(f"steps.{number}: an argument holds a NUL character.")


def check_image_name(name: str) -> None:
    """Raises: InvalidRequest also for what a caller must not have fetched or used."""
    if not _IMAGE.fullmatch(name) or len(name) > 400:
        raise InvalidRequest("fromImage is not the name of an image.")
    if _PRIVATE.match(name):
        raise InvalidRequest("fromImage names an image of Sandgate's own; use fromTemplate for a template.")
    registry, slash, _ = name.partition("/")
    # As Docker tells a registry from the first part of a repository's name.
    is_registry = slash and ("." in registry or ":" in registry or registry == "localhost")
    if is_registry and _ADDRESS.fullmatch(registry):
        # The engine would connect from its host, where the network guard does not hold.
        raise InvalidRequest("fromImage: a registry must have a name; SANDGATE_IMAGE_ALIASES may lead to another one.")


def plan_steps(steps: Sequence[Step], runs: Runs, image_env: Mapping[str, str]) -> list[PlannedStep]:
    """`runs` is how commands run in the image below, whose own variables are `image_env`."""
    planned = []
    for number, step in enumerate(steps, start=1):
        done = _plan_step(str(number), step, runs, image_env)
        planned.append(done)
        runs = done.after
    return planned


def plan_start(runs: Runs) -> Mapping[str, Any]:
    """The trial run of start and ready command at the end of a build."""
    return {
        "do": "start",
        "start": runs.start_command,
        "ready": runs.ready_command,
        "deadline_s": READY_DEADLINE_S,
        "settle_s": SETTLE_S,
        **_setting(runs),
    }


def layer_key(below: str, *parts: object) -> str:
    """Names what a step makes of an image that is itself named by `below`."""
    return hashlib.sha256(orjson.dumps([below, *parts], option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]


def failure_text(step: PlannedStep, exit_code: int, last_line: str) -> str:
    detail = last_line if exit_code == REFUSED and last_line else f"exit status {exit_code}"
    return f"{step.failing}: {detail}"


def image_alias(name: str, aliases: Mapping[str, str]) -> str | None:
    """The image that an operator has put in the place of `name`; the tag `latest` may be left out."""
    short = name.removesuffix(":latest")
    return next((image for alias, image in aliases.items() if alias.removesuffix(":latest") == short), None)


def _plan_step(number: str, step: Step, runs: Runs, image_env: Mapping[str, str]) -> PlannedStep:
    action: Mapping[str, Any] | None = None
    after = runs
    files_hash = None
    servers: tuple[str, ...] = ()
    match step.kind, step.args:
        case "RUN", (command, *rest):
            user = rest[0] if rest and rest[0] else runs.user
            title = f"RUN {command}"
            failing = f"failed to run command '{command}': command failed"
            if pull := _PULL.fullmatch(command):
                servers = tuple(pull[1].split())
            else:
                # Elsewhere than `user` begins at home where no directory was asked for.
                action = {"do": "run", "command": command, **_setting(replace(runs, user=user))}
        case "COPY", (source, target, *rest):
            owner, mode, *_ = (*rest, "", "")
            title = f"COPY {source} {target}"
            failing = f"failed to copy '{source}' to '{target}'"
            files_hash = step.files_hash
            action = {
                "do": "copy",
                "source": source,
                "target": target,
                "owner": owner,
                "mode": mode,
                "user": runs.user,
                "workdir": runs.workdir,
            }
        case "ENV", pairs:
            envs = dict(runs.envs)
            for name, value in zip(pairs[::2], pairs[1::2], strict=True):
                envs[name] = _expanded(value, {**image_env, **envs})
            after = replace(runs, envs=envs)
            title, failing = f"ENV {' '.join(pairs[::2])}", "failed to set the environment"
            if "PATH" in pairs[::2]:
                action = {"do": "path", "value": envs["PATH"]}
        case "WORKDIR", (path, *_):
            directory = posixpath.normpath(posixpath.join(runs.workdir or "/", path))
            after = replace(runs, workdir=directory)
            title, failing = f"WORKDIR {path}", f"failed to create workdir '{path}'"
            action = {"do": "workdir", "path": directory, "user": runs.user}
        case _:
            name = step.args[0]
            user, _, _ = name.partition(":")
            user = "root" if user == "0" else user
            after = replace(runs, user=user)
            title, failing = f"USER {name}", "failed to create user"
            action = {"do": "user", "name": user}
    return PlannedStep(
        name=number,
        title=title,
        failing=failing,
        action=action,
        after=after,
        force=step.force,
        files_hash=files_hash,
        servers=servers,
    )


def _setting(runs: Runs) -> Mapping[str, Any]:
    return {"user": runs.user, "workdir": runs.workdir, "env": dict(runs.envs)}


def _expanded(value: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` as a shell would have them; what is unknown is empty."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), value)
