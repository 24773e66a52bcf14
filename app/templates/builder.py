"""Carries out builds in the background, a few at a time, and clears up after them.

A build that is cut short by the end of the control plane is failed by the next one; it cannot go on, because what was
sent with it (credentials of a registry) is kept nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import orjson
import structlog
import tenacity

from app.engines.builds import BuildStep, Result, Upload
from app.engines.interface import Engine, File, Limits
from app.errors import EngineError, SandgateError
from app.templates.base_images import (
    AGENT_PYTHON,
    ENTRYPOINT,
    STEP_FOLDER,
    Base,
    BaseImages,
    BuildSettings,
    StepFailedError,
)
from app.templates.build_log import BuildLog, reason_of
from app.templates.layers import Layers
from app.templates.models import Build, BuildFailure, BuildStatus, ResolvedTemplate, Runs, Template
from app.templates.planning import (
    BASE_STEP,
    FINAL_STEP,
    BuildRequest,
    PlannedStep,
    failure_text,
    layer_key,
    plan_start,
    plan_steps,
)
from app.templates.private_pulls import PrivatePulls
from app.templates.store import TemplateStore
from app.templates.uploads import Uploads

_AT_ONCE = 2
"""Builds that run side by side; further ones wait."""
_LOG_ATTEMPTS = 3
"""A log that the database does not take keeps nobody from being told how the build went."""
_SWEEP_INTERVAL_S = 600.0
_GIVE_UP_WAITING = timedelta(days=1)
_YOUNG = timedelta(hours=1)
"""An image without a row may belong to what is being recorded just now."""

ImagesOfForks = Callable[[], Awaitable[set[str]]]
"""Those that a sandbox is recorded with."""
Resolve = Callable[[str, str], Awaitable[ResolvedTemplate]]
"""Team and reference -> template."""
PrepareServer = Callable[[str, Callable[[str], None]], Awaitable[Sequence[str]]]
"""Key of an MCP server, and who is told how it goes -> images it needs, once its package is installed.

Raises: SandgateError, also for an unknown one.
"""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Job:
    template: Template
    build: Build
    request: BuildRequest = field(repr=False)


class Builder:
    def __init__(
        self,
        *,
        store: TemplateStore,
        engine: Engine,
        uploads: Uploads,
        settings: BuildSettings,
        resolve: Resolve,
        images_of_forks: ImagesOfForks,
        prepare_server: PrepareServer,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._engine = engine
        self._uploads = uploads
        self._settings = settings
        self._resolve = resolve
        self._images_of_forks = images_of_forks
        self._prepare_server = prepare_server
        self._now = now
        self._layers = Layers(store, engine, namespace=settings.namespace, now=now)
        self._private_pulls = PrivatePulls(store, engine, self._layers, self._spawn)
        self._bases = BaseImages(engine.builds, self._layers, self._private_pulls, settings)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._tasks: asyncio.TaskGroup
        self._under_way: dict[str, asyncio.Task[None]] = {}
        """By template id and build id together."""
        self._sweep_wanted = asyncio.Event()

    async def run(self, ready: asyncio.Event) -> None:
        """Work until cancelled, which ends the builds under way. `ready` is set once builds may be started."""
        failure = BuildFailure(
            message="The control plane was stopped while the template was being built. Build it again."
        )
        await self._store.abandon_builds(failure, self._now(), forgotten_before=self._now() - _GIVE_UP_WAITING)
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._sweep_regularly(), name="sweep templates")
            ready.set()

    def start(self, template: Template, build: Build, request: BuildRequest) -> None:
        """Carry out a build in the background. How it went is found in its row."""
        key = f"{template.id}/{build.id}"
        task = self._spawn(self._build(_Job(template, build, request)), f"build {key}")
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def end(self, template_id: str) -> None:
        """End the builds of a template that is being deleted; returns once none of them has a container left."""
        tasks = [task for key, task in self._under_way.items() if key.startswith(f"{template_id}/")]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def sweep_soon(self) -> None:
        """Images may have become superfluous."""
        self._sweep_wanted.set()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=name)

    def image_of(self, build_id: str) -> str:
        return f"{self._settings.namespace}/template:{build_id}"

    def image_of_fork(self, fork_id: str) -> str:
        return f"{self._settings.namespace}/fork:{fork_id}"

    # -- one build --------------------------------------------------------------------------------------------------

    async def _build(self, job: _Job) -> None:
        try:
            await self._carry_out(job)
        except Exception:  # noqa: BLE001 - one build that goes wrong must not end the others
            _log.exception("template_build_lost", build_id=job.build.id)

    async def _carry_out(self, job: _Job) -> None:
        log = BuildLog(self._store, job.build.id, self._now)
        async with self._places:
            await _until_recorded(job.build)(self._store.mark_building, job.build.id)
            began = asyncio.get_running_loop().time()
            async with log.written():
                outcome = await self._outcome(job, log)
        is_kept = await self._record(outcome, log)
        took_s = round(asyncio.get_running_loop().time() - began, 3)
        told = {"template_id": job.template.id, "build_id": job.build.id, "took_s": took_s}
        if outcome.failure is None:
            _log.info("template_built", **told)
        else:
            _log.info("template_build_failed", **told, step=outcome.failure.step)
        if outcome.failure is not None or not is_kept:
            self.sweep_soon()

    async def _record(self, outcome: Build, log: BuildLog) -> bool:
        """Goes on until the database took it: whoever asks for the build would wait for ever. False if it is gone."""
        is_kept = False
        async for attempt in _until_recorded(outcome):
            with attempt:
                try:
                    # First, since a client reads the log until the build is over.
                    await log.flush()
                except Exception as error:
                    if attempt.retry_state.attempt_number < _LOG_ATTEMPTS:
                        raise
                    _log.error("template_build_log_incomplete", build_id=outcome.id, reason=reason_of(error))
                is_kept = await self._store.finish_build(outcome, self._now())
        return is_kept

    async def _outcome(self, job: _Job, log: BuildLog) -> Build:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                built = await self._steps(job, log)
        except TimeoutError:
            return _failed(job.build, f"The build took longer than {self._settings.timeout_s:g} s.", log)
        except (StepFailedError, SandgateError) as error:
            return _failed(job.build, str(error), log)
        except Exception:  # noqa: BLE001 - one build that goes wrong must not end the others
            _log.exception("template_build_broke", build_id=job.build.id)
            return _failed(job.build, "An internal error, which is in the server's log.", log)
        log.say("Build finished.")
        return built

    async def _steps(self, job: _Job, log: BuildLog) -> Build:
        request = job.request
        log.begin_step(BASE_STEP)
        base = await self._base(job, log)
        planned = plan_steps(request.steps, base.runs, base.env)
        image, runs = await self._apply(job, base, planned, log)
        log.begin_step(FINAL_STEP)
        runs = replace(
            runs,
            start_command=request.start_command or runs.start_command,
            ready_command=request.ready_command or runs.ready_command,
        )
        if runs.start_command or runs.ready_command:
            await self._try_start(job, image, runs, log)
        name = self.image_of(job.build.id)
        await self._engine.builds.name_image(image, name)
        return replace(job.build, status=BuildStatus.READY, image=name, runs=runs, has_gateway=base.has_gateway)

    async def _base(self, job: _Job, log: BuildLog) -> Base:
        request = job.request
        if request.from_template:
            log.say(f"FROM template {request.from_template}")
            below = await self._resolve(job.template.team_id, request.from_template)
            runs = Runs(
                user=below.user or Runs().user,
                workdir=below.workdir or Runs().workdir,
                envs=below.envs,
                start_command=below.start_command,
                ready_command=below.ready_command,
            )
            return await self._bases.ready_made(below.image, runs=runs, has_gateway=below.has_gateway)
        name = request.from_image or ""
        log.say(f"FROM {name}")
        return await self._bases.named(name, request.login, build_id=job.build.id, force=request.force, log=log)

    async def _apply(self, job: _Job, base: Base, planned: Sequence[PlannedStep], log: BuildLog) -> tuple[str, Runs]:
        """Image and way to run it after the last step."""
        image, key, runs = base.image, base.key, base.runs
        is_forced = job.request.force
        for step in planned:
            log.begin_step(step.name)
            log.say(f"[{step.name}/{len(planned)}] {step.title}")
            runs = step.after
            is_forced = is_forced or step.force
            if step.servers:
                await self._pull_servers(step.servers, log)
            if step.action is None:
                continue
            key = layer_key(key, job.template.team_id, step.action, step.files_hash)
            # One that is made anew takes the name over: another build may go on from what is there.
            layer = None if is_forced else await self._layers.find(key)
            if layer is not None:
                log.say("taken from the cache", "debug")
            else:
                layer = self._layers.name(key)
                await self._do(job, step, image, layer, log)
                await self._layers.made(key)
            image = layer
        return image, runs

    async def _do(self, job: _Job, step: PlannedStep, image: str, layer: str, log: BuildLog) -> None:
        uploads: tuple[Upload, ...] = ()
        if step.files_hash is not None:
            archive = self._uploads.find(job.template.team_id, step.files_hash)
            if archive is None:
                raise StepFailedError(f"{step.failing}: its files were not uploaded")
            uploads = (Upload(source=archive, path=f"{STEP_FOLDER}/files.tar"),)
        code = await self._run(job, image, step.action, log, uploads=uploads, layer=layer)
        last = log.end_output()
        if code != 0:
            raise StepFailedError(failure_text(step, code, last[-1].message if last else ""))

    async def _try_start(self, job: _Job, image: str, runs: Runs, log: BuildLog) -> None:
        """Whether a sandbox of this template would come up. What the commands leave behind is not kept."""
        if runs.start_command:
            log.say(f"start command: {runs.start_command}")
        if runs.ready_command:
            log.say(f"waiting for the ready command: {runs.ready_command}")
        code = await self._run(job, image, plan_start(runs), log)
        last = log.end_output()
        if code != 0:
            raise StepFailedError(last[-1].message if last else f"the trial start ended with exit code {code}")

    async def _run(
        self,
        job: _Job,
        image: str,
        action: object,
        log: BuildLog,
        *,
        uploads: tuple[Upload, ...] = (),
        layer: str | None = None,
    ) -> int:
        scripts = {name: self._settings.scripts[name] for name in ("step.py", "accounts.py")}
        step = BuildStep(
            build_id=job.build.id,
            image=image,
            command=(AGENT_PYTHON, "-E", "-s", f"{STEP_FOLDER}/step.py"),
            limits=self._limits(job.build),
            capabilities=self._settings.capabilities,
            files=tuple(
                File(path=f"{STEP_FOLDER}/{name}", content=content)
                for name, content in {**scripts, "step.json": orjson.dumps(action)}.items()
            ),
            uploads=uploads,
            result=Result(name=layer, entrypoint=ENTRYPOINT) if layer else None,
        )
        return await self._engine.builds.run(step, log.output)

    def _limits(self, build: Build) -> Limits:
        usual = self._settings.limits
        return replace(usual, memory_mib=build.memory_mib or usual.memory_mib, cpus=build.cpus or usual.cpus)

    async def _pull_servers(self, keys: Sequence[str], log: BuildLog) -> None:
        """There is no gateway in a build: what `mcp-gateway pull` does in a sandbox is done from outside."""
        for key in keys:
            for image in await self._prepare_server(key, log.say):
                if await self._engine.builds.find_image(image) is None:
                    log.say(f"pulling {image} for MCP server {key}")
                    await self._engine.builds.pull(image)
            log.say(f"MCP server {key} is there")

    # -- clearing up ------------------------------------------------------------------------------------------------

    async def _sweep_regularly(self) -> None:
        while True:
            self._sweep_wanted.clear()
            try:
                await self._engine.builds.remove_containers()
                await self._sweep()
            except EngineError as error:
                _log.warning("template_sweep_failed", reason=str(error))
            except Exception:  # noqa: BLE001 - a database that is away for a while must not end the sweep
                _log.exception("template_sweep_failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_INTERVAL_S):
                    await self._sweep_wanted.wait()

    async def _sweep(self) -> None:
        """Remove images that no tag leads to any more, layers and archives that no build has used for a while.

        Snapshots and forks that were cut off leave images too: an engine may finish one that nobody waits for. And a
        process that was killed may have left names that others' credentials fetched images by.
        """
        young = self._now() - _YOUNG
        await self._store.drop_untagged_images(young)
        there = [
            *await self._engine.builds.images(f"{self._settings.namespace}/template"),
            *await self._engine.builds.images(f"{self._settings.namespace}/fork"),
        ]
        # In this order: what a build gave a name to belongs to one under way, or to a row by the time rows are read.
        under_way = {self.image_of(key.partition("/")[2]) for key in self._under_way}
        needed = await self._store.images() | await self._images_of_forks() | under_way
        for image in there:
            if image.name not in needed and image.created_at < young:
                await self._engine.remove_image(image.name)
        await self._private_pulls.give_names_back()
        await self._layers.remove_superfluous()
        await asyncio.to_thread(self._uploads.remove_unused)


def _until_recorded(build: Build) -> tenacity.AsyncRetrying:
    """Tries again whatever fails, a database that is away for a while above all."""

    def log(state: tenacity.RetryCallState) -> None:
        reason = reason_of(state.outcome.exception() if state.outcome is not None else None)
        _log.warning("template_build_not_recorded", build_id=build.id, attempt=state.attempt_number, reason=reason)

    return tenacity.AsyncRetrying(
        wait=tenacity.wait_exponential(multiplier=0.5, max=30),
        retry=tenacity.retry_if_exception_type(Exception),
        before_sleep=log,
    )


def _failed(build: Build, message: str, log: BuildLog) -> Build:
    last = log.end_output()
    log.say(message, "error")
    failure = BuildFailure(message=message, step=log.step, log=last)
    return replace(build, status=BuildStatus.ERROR, failure=failure)
