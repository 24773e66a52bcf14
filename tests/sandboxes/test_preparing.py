"""No sandbox starts while its network cannot be guarded, and nothing else keeps sandboxes from starting."""

from __future__ import annotations

import asyncio

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import Pod, PodSpec
from app.errors import EngineError
from app.sandboxes.models import PauseMode
from app.sandboxes.service import SandboxView
from tests.in_process import IMAGES, StartControlPlane, request
from tests.waiting import BOUND_S, until


class EngineThatMayLoseItsGuard(InMemoryEngine):
    """Starts whatever it is told to: whether it may is the caller's affair."""

    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.is_guarded = True
        self.refusals = 0
        self.starts_unguarded = 0

    async def prepare(self) -> None:
        await super().prepare()
        if not self.is_guarded:
            self.refusals += 1
            raise EngineError("bridge-nf-call-iptables is 0")

    async def start(self, spec: PodSpec) -> Pod:
        self.starts_unguarded += not self.is_guarded
        return await super().start(spec)

    async def resume(self, pod_id: str) -> Pod:
        self.starts_unguarded += not self.is_guarded
        return await super().resume(pod_id)


class EngineThatDoesNotLetGo(InMemoryEngine):
    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.keeps_pods = False
        """Their removal never ends."""
        self.keeps_images = False
        """Their removal is refused."""

    async def stop(self, pod_id: str) -> None:
        if self.keeps_pods:
            await asyncio.Event().wait()
        await super().stop(pod_id)

    async def remove_image(self, image: str) -> bool:
        if self.keeps_images:
            raise EngineError("device busy")
        return await super().remove_image(image)


async def test_no_sandbox_starts_while_the_guard_cannot_be_renewed(start_control_plane: StartControlPlane) -> None:
    engine = EngineThatMayLoseItsGuard()
    async with start_control_plane(engine=engine, prepare_interval_s=0.01) as control_plane:
        service, team_id = control_plane.service, control_plane.team_id
        halted = (await service.create(team_id, request())).sandbox
        await service.pause(team_id, halted.id, PauseMode.FILESYSTEM)
        engine.is_guarded = False
        await until(lambda: engine.refusals)
        create = asyncio.create_task(service.create(team_id, request()))
        resume = asyncio.create_task(service.connect(team_id, halted.id, 60))
        await until(lambda: engine.refusals > 1)
        assert not create.done()
        assert not resume.done()
        engine.is_guarded = True
        await create
        await resume
    assert engine.starts_unguarded == 0


class EngineThatStumblesOverLeftovers(InMemoryEngine):
    """Fails as no engine is expected to when it looks for runs and jobs that were lost."""

    def __init__(self) -> None:
        super().__init__(IMAGES)
        self.preparations = 0

    async def prepare(self) -> None:
        self.preparations += 1

    async def remove_lost(self) -> None:
        raise KeyError("Created")


async def test_the_guard_is_renewed_whatever_becomes_of_leftovers(start_control_plane: StartControlPlane) -> None:
    engine = EngineThatStumblesOverLeftovers()
    async with start_control_plane(engine=engine, prepare_interval_s=0.01):
        await until(lambda: engine.preparations > 2)


async def test_a_pod_that_cannot_be_removed_keeps_no_sandbox_from_starting(
    start_control_plane: StartControlPlane,
) -> None:
    engine = EngineThatDoesNotLetGo()
    async with start_control_plane(engine=engine) as first:
        sandbox = (await first.service.create(first.team_id, request())).sandbox
        await first.store.mark_stopped(sandbox.id, sandbox.created_at)
    engine.keeps_pods = True
    async with start_control_plane(engine=engine) as second:
        await second.service.create(second.team_id, request())


async def test_an_image_that_cannot_be_removed_keeps_no_sandbox_from_stopping_or_starting(
    start_control_plane: StartControlPlane,
) -> None:
    engine = EngineThatDoesNotLetGo()
    engine.keeps_images = True
    async with start_control_plane(engine=engine) as first:
        source = (await first.service.create(first.team_id, request())).sandbox
        (copy,) = await first.service.fork(first.team_id, source.id, count=1, timeout_s=60)
        assert isinstance(copy, SandboxView)
        await first.service.kill(first.team_id, copy.sandbox.id)
        async with asyncio.timeout(BOUND_S):
            while (await first.journal.entries(copy.sandbox.id))[-1].message != "Stopped.":
                await asyncio.sleep(0.005)
    async with start_control_plane(engine=engine) as second:
        (image,) = await second.store.unused_fork_images()
        await second.service.create(second.team_id, request())
        engine.keeps_images = False
    async with start_control_plane(engine=engine):
        async with asyncio.timeout(BOUND_S):
            while await engine.has_image(image):
                await asyncio.sleep(0.005)
