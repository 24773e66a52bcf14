"""What a template's steps begin with: an image that is a sandbox already, or one that is made into one.

Any Linux image will do: the agent comes with its own Python, C library and loader (`sandbox_images/templates`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.engines.builds import Builds, BuildStep, ImageFacts, ImagePullError, RegistryLogin, Result, Tree
from app.engines.interface import File, Limits
from app.errors import EngineError, ImageMissing
from app.templates.build_log import BuildLog
from app.templates.layers import Layers
from app.templates.models import Runs
from app.templates.planning import image_alias, layer_key
from app.templates.private_pulls import PrivatePulls

AGENT_PYTHON = "/opt/sandgate/agent/bin/python"
ENTRYPOINT = (AGENT_PYTHON, "-Iu", "-m", "sandgate_agent")
"""As the workspace image has it."""
STEP_FOLDER = "/.sandgate-step"
BASE_IMAGE = "e2bdev/base"
"""What the SDKs begin with unless told otherwise. Here that is the workspace image."""
_WORKSPACE_LABEL = ("sandgate.image", "workspace")
_TRUSTED_STORE = "/etc/ssl/certs/ca-certificates.crt"
_RUNTIME_TREE = "/sandgate-runtime/opt"


class StepFailedError(Exception):
    """A step of a build did not succeed; the text is for whoever wrote the template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """The operator's facts that builds depend on."""

    namespace: str
    """Images of builds and snapshots are `<namespace>/template:…`, of their steps `<namespace>/layer:…`, and what forks
    are made from `<namespace>/fork:…`."""
    workspace_image: str
    aliases: Mapping[str, str]
    """Name of an image -> the one to use instead of it."""
    limits: Limits
    """Of the container of a step, unless the template asks for others."""
    capabilities: tuple[str, ...]
    timeout_s: float
    """How long one build may take."""
    scripts: Mapping[str, bytes] = field(repr=False)
    """Those of `sandbox_images/templates`, by file name."""

    @property
    def scripts_digest(self) -> str:
        digest = hashlib.sha256()
        for name, content in sorted(self.scripts.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


def read_scripts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.py"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An image that steps can begin with."""

    image: str
    key: str
    """Names the image's content; layers on top are named after it."""
    env: Mapping[str, str] = field(repr=False)
    runs: Runs = Runs()
    has_gateway: bool = False


class BaseImages:
    def __init__(self, builds: Builds, layers: Layers, private_pulls: PrivatePulls, settings: BuildSettings) -> None:
        self._builds = builds
        self._layers = layers
        self._private_pulls = private_pulls
        self._settings = settings
        self._runtime_lock = asyncio.Lock()

    async def named(self, name: str, login: RegistryLogin | None, *, build_id: str, force: bool, log: BuildLog) -> Base:
        """From an image on the engine, one from a registry, or what an alias leads to. Raises: EngineError."""
        alias = image_alias(name, self._settings.aliases)
        if alias is None and image_alias(name, {BASE_IMAGE: BASE_IMAGE}):
            alias = self._settings.workspace_image
        if alias is not None and alias != name:
            log.say(f"{name} is {alias} here")
        image = alias or name
        async with self._private_pulls.turn(image, log.say):
            facts = await self._builds.find_image(image)
            # A digest never comes to mean another image.
            is_to_be_fetched = facts is None or (force and alias is None and "@" not in image)
            if is_to_be_fetched and login is not None:
                facts = await self._pull(image, login, log, instead=facts)
        if is_to_be_fetched and login is None:
            facts = await self._pull(image, None, log, instead=facts)
        if facts is None:
            raise EngineError(f"Image {image} was pulled and is not on the engine.")
        label, workspace = _WORKSPACE_LABEL
        if facts.labels.get(label) == workspace:
            # Not by its name, which others' credentials may make another image's meanwhile.
            return Base(image=facts.image_id, key=facts.image_id, env=facts.env)
        return await self._equipped(image, facts.image_id, facts.env, build_id=build_id, force=force, log=log)

    async def _pull(
        self, image: str, login: RegistryLogin | None, log: BuildLog, *, instead: ImageFacts | None
    ) -> ImageFacts | None:
        """Fetch an image; where that fails, `instead` is what there is. None if it is not there after all. Raises:
        EngineError."""
        log.say(f"pulling {image}")
        try:
            if login is not None:
                return await self._private_pulls.pull(image, login)
            await self._builds.pull(image)
        except ImagePullError as error:
            if instead is None:
                raise
            log.say(f"{error} Using the one that is here.", "warn")
            return instead
        async with self._private_pulls.turn(image, log.say):
            return await self._builds.find_image(image)

    async def ready_made(self, image: str | None, *, runs: Runs, has_gateway: bool) -> Base:
        """From a template's image, or the workspace image for None. Raises: ImageMissing."""
        image = image or self._settings.workspace_image
        facts = await self._builds.find_image(image)
        if facts is None:
            raise ImageMissing(image)
        return Base(image=image, key=facts.image_id, env=facts.env, runs=runs, has_gateway=has_gateway)

    async def _equipped(
        self, image: str, image_id: str, env: Mapping[str, str], *, build_id: str, force: bool, log: BuildLog
    ) -> Base:
        """The same image with the agent in it, and with what the SDKs expect of a sandbox."""
        workspace = await self._builds.find_image(self._settings.workspace_image)
        if workspace is None:
            raise ImageMissing(self._settings.workspace_image)
        key = layer_key("base", image_id, workspace.image_id, self._settings.scripts_digest)
        trust = {name: value for name, value in workspace.env.items() if value == _TRUSTED_STORE and name not in env}
        layer = None if force else await self._layers.find(key)
        if layer is None:
            log.say(f"making {image} a sandbox: agent, user, certificates, sudo")
            runtime = await self._runtime(build_id, workspace.image_id, log)
            layer = self._layers.name(key)
            step = BuildStep(
                build_id=build_id,
                image=image_id,
                command=(AGENT_PYTHON, "-E", "-s", f"{STEP_FOLDER}/provision.py"),
                limits=self._settings.limits,
                capabilities=self._settings.capabilities,
                trees=(Tree(image=runtime, path=_RUNTIME_TREE, into="/"),),
                files=self._script_files("provision.py", "accounts.py"),
                result=Result(name=layer, entrypoint=ENTRYPOINT, env=trust),
            )
            await self._run(step, log, failing=f"{image} cannot be made a sandbox")
            await self._layers.made(key)
        return Base(image=layer, key=key, env={**env, **trust})

    async def _runtime(self, build_id: str, workspace_id: str, log: BuildLog) -> str:
        """The workspace image with the runtime gathered in it; made once for each workspace image."""
        key = layer_key("runtime", workspace_id, self._settings.scripts_digest)
        async with self._runtime_lock:
            found = await self._layers.find(key)
            if found is not None:
                return found
            step = BuildStep(
                build_id=build_id,
                image=workspace_id,
                command=(AGENT_PYTHON, "-E", "-s", f"{STEP_FOLDER}/make_runtime.py"),
                limits=self._settings.limits,
                capabilities=self._settings.capabilities,
                files=self._script_files("make_runtime.py"),
                result=Result(name=self._layers.name(key), entrypoint=ENTRYPOINT),
            )
            await self._run(step, log, failing="the agent's runtime cannot be gathered")
            await self._layers.made(key)
        return self._layers.name(key)

    async def _run(self, step: BuildStep, log: BuildLog, *, failing: str) -> None:
        code = await self._builds.run(step, log.output)
        last = log.end_output()
        if code != 0:
            raise StepFailedError(f"{failing}: {last[-1].message if last else f'exit status {code}'}")

    def _script_files(self, *names: str) -> tuple[File, ...]:
        return tuple(File(path=f"{STEP_FOLDER}/{name}", content=self._settings.scripts[name]) for name in names)
