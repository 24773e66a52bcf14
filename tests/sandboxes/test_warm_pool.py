"""Pods wait for creates, are claimed once, and are replaced; no pod is lost and none is used twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.interface import ContainerSpec, Limits, Pod, PodSpec
from app.sandboxes.models import PodRecord
from app.sandboxes.warm_pool import PoolStatus
from tests.in_process import IMAGES, Clock, ControlPlane, StartControlPlane, request
from tests.pods import PodTransport
from tests.waiting import BOUND_S, until


class EngineWithABreak(InMemoryEngine):
    """Takes its time for the stop of one pod, and makes none before it is told to."""

    def __init__(self) -> None:
        super().__init__(IMAGES, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.looks = 0
        self.is_stopping = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def observe(self) -> Mapping[str, Pod]:
        self.looks += 1
        return await super().observe()

    async def start(self, spec: PodSpec) -> Pod:
        await self.may_start.wait()
        return await super().start(spec)

    async def stop(self, pod_id: str) -> None:
        if pod_id == "stray":
            self.is_stopping.set()
            await self.may_stop.wait()
        await super().stop(pod_id)


async def waiting(control_plane: ControlPlane) -> list[PodRecord]:
    return [pod for pod in (await control_plane.store.pods()).values() if pod.sandbox_id is None and pod.address]


async def until_waiting(control_plane: ControlPlane, count: int) -> list[PodRecord]:
    async with asyncio.timeout(BOUND_S):
        while len(pods := await waiting(control_plane)) != count:
            await asyncio.sleep(0.002)
    return pods


async def test_a_create_claims_a_pod_that_waits_and_another_takes_its_place(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    async with start_control_plane(warm=1) as control_plane:
        (warm,) = await until_waiting(control_plane, 1)
        view = await control_plane.service.create(control_plane.team_id, request(envs={"A": "b"}))
        pod = await control_plane.store.pod_of(view.sandbox.id)
        assert pod is not None
        assert pod.id == warm.id
        assert pods.pod(f"{warm.id}.pod").inits[0]["envs"] == {"A": "b"}
        (successor,) = await until_waiting(control_plane, 1)
        assert successor.id != warm.id
        assert pods.pod(f"{successor.id}.pod").inits == []
        assert len(await engine.observe()) == 2


async def test_a_pod_that_is_claimed_in_the_middle_of_a_sweep_does_not_count_as_waiting(
    start_control_plane: StartControlPlane,
) -> None:
    engine = EngineWithABreak()
    async with start_control_plane(engine=engine, warm=2, sweep_interval_s=0.02) as control_plane:
        await until_waiting(control_plane, 2)
        # The sweep has read the rows by the time it comes to a pod that none of them knows.
        workspace = ContainerSpec(role="workspace", image="workspace:1", limits=Limits(memory_mib=1, cpus=1, pids=1))
        await engine.start(PodSpec(pod_id="stray", containers=(workspace,)))
        engine.may_start.clear()
        async with asyncio.timeout(BOUND_S):
            await engine.is_stopping.wait()
            for _ in range(2):
                await control_plane.service.create(control_plane.team_id, request())
            engine.may_stop.set()
            looks = engine.looks
            await until(lambda: engine.looks > looks)  # that sweep is over
        assert control_plane.service.pools()[0].waiting == 0
        engine.may_start.set()
        await until_waiting(control_plane, 2)


async def test_a_create_of_another_kind_leaves_the_pool_alone(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane(warm=1) as control_plane:
        (warm,) = await until_waiting(control_plane, 1)
        await control_plane.service.create(control_plane.team_id, request(mcp={"time": {}}))
        assert [pod.id for pod in await waiting(control_plane)] == [warm.id]
        assert len(await engine.observe()) == 2


async def test_no_pod_is_made_while_somebody_waits_for_a_sandbox_that_claimed_one(
    start_control_plane: StartControlPlane, pods: PodTransport
) -> None:
    async with start_control_plane(warm=1, warm_template="mcp-gateway") as control_plane:
        (warm,) = await until_waiting(control_plane, 1)
        pods.configuring.clear()
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            group.create_task(control_plane.service.create(control_plane.team_id, request(mcp={})))
            while not pods.pod(f"{warm.id}.pod").configs:
                await asyncio.sleep(0.002)
            for _ in range(200):  # far more turns than the pool needs to begin with a pod
                assert list(await control_plane.store.pods()) == [warm.id]
            pods.configuring.set()
        await until_waiting(control_plane, 1)


async def test_more_creates_than_pods_wait_are_served_cold(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(warm=2) as control_plane:
        await until_waiting(control_plane, 2)
        async with asyncio.TaskGroup() as group:
            creates = [
                group.create_task(control_plane.service.create(control_plane.team_id, request())) for _ in range(9)
            ]
        assert len({create.result().sandbox.id for create in creates}) == 9
        pods = [await control_plane.store.pod_of(create.result().sandbox.id) for create in creates]
        assert len({pod.id for pod in pods if pod is not None}) == 9


async def test_a_pool_grows_with_demand_and_shrinks_when_it_ebbs(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(warm=1) as control_plane:
        await until_waiting(control_plane, 1)
        for _ in range(3):
            await control_plane.service.create(control_plane.team_id, request())
        await until_waiting(control_plane, 3)


async def test_waiting_pods_are_kept_over_a_restart(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane(warm=1) as first:
        (warm,) = await until_waiting(first, 1)
    async with start_control_plane(warm=1) as second:
        assert [pod.id for pod in await until_waiting(second, 1)] == [warm.id]
        view = await second.service.create(second.team_id, request())
        pod = await second.store.pod_of(view.sandbox.id)
        assert pod is not None
        assert pod.id == warm.id


async def test_pods_that_nobody_would_claim_are_removed(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane(warm=1) as first:
        await until_waiting(first, 1)
    async with start_control_plane(warm=0) as second:
        await until_waiting(second, 0)
        async with asyncio.timeout(BOUND_S):
            while await engine.observe() or await second.store.pods():
                await asyncio.sleep(0.002)


async def test_a_waiting_pod_that_died_is_replaced(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane(warm=1) as first:
        (warm,) = await until_waiting(first, 1)
    engine.exit_container(warm.id, "workspace", exit_code=1)
    async with start_control_plane(warm=1) as second:
        async with asyncio.timeout(BOUND_S):
            while [pod.id for pod in await waiting(second)] in ([], [warm.id]):
                await asyncio.sleep(0.002)
        assert warm.id not in await engine.observe()


async def test_a_claimed_pod_that_does_not_answer_is_replaced_by_a_cold_one(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport, clock: Clock
) -> None:
    async with start_control_plane(warm=1, sweep_interval_s=0.2) as control_plane:
        (warm,) = await until_waiting(control_plane, 1)
        pods.broken.add(f"{warm.id}.pod")
        view = await control_plane.service.create(control_plane.team_id, request())
        pod = await control_plane.store.pod_of(view.sandbox.id)
        assert pod is not None
        assert pod.id != warm.id
        async with asyncio.timeout(BOUND_S):
            while warm.id in await engine.observe() or warm.id in await control_plane.store.pods():
                await asyncio.sleep(0.002)
        assert control_plane.directory.find(view.sandbox.id) is not None
        assert pod.id in await engine.observe()


async def test_a_waiting_pod_whose_agent_does_not_answer_is_replaced(
    start_control_plane: StartControlPlane, engine: InMemoryEngine, pods: PodTransport
) -> None:
    async with start_control_plane(warm=1, sweep_interval_s=0.01) as control_plane:
        (warm,) = await until_waiting(control_plane, 1)
        pods.broken.add(f"{warm.id}.pod")
        async with asyncio.timeout(BOUND_S):
            while [pod.id for pod in await waiting(control_plane)] in ([], [warm.id]):
                await asyncio.sleep(0.002)
        assert warm.id not in await engine.observe()
        (pool,) = control_plane.service.pools()
        assert pool.replaced == 1


async def test_a_pool_tells_how_often_it_was_empty(start_control_plane: StartControlPlane) -> None:
    async with start_control_plane(warm=1) as control_plane:
        await until_waiting(control_plane, 1)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(control_plane.service.create(control_plane.team_id, request()))
        # The pool counts a pod a moment after its row says that it waits.
        await until(lambda: [pool.waiting for pool in control_plane.service.pools()] == [3])
        assert control_plane.service.pools() == [
            PoolStatus(templates=("base",), size=1, wanted=3, waiting=3, warm_creates=1, cold_creates=2, replaced=0)
        ]


async def images_that_wait(control_plane: ControlPlane, engine: InMemoryEngine) -> list[str]:
    pods = await waiting(control_plane)
    observed = await engine.observe()
    return [engine.spec_of(pod.id).containers[0].image for pod in pods if pod.id in observed]


async def test_a_pool_follows_a_template_that_is_built_anew(
    start_control_plane: StartControlPlane, engine: InMemoryEngine
) -> None:
    async with start_control_plane(warm=1, warm_template="mine", sweep_interval_s=0.01) as control_plane:
        assert control_plane.service.pools() == []
        images: list[str | None] = []
        for _ in range(2):
            source = (await control_plane.service.create(control_plane.team_id, request())).sandbox
            await control_plane.service.snapshot(control_plane.team_id, source.id, "mine")
            images.append((await control_plane.templates.resolve(control_plane.team_id, "mine")).image)
            async with asyncio.timeout(BOUND_S):
                while await images_that_wait(control_plane, engine) != images[-1:]:
                    await asyncio.sleep(0.002)
        assert images[0] != images[1]
        (pod,) = await waiting(control_plane)
        view = await control_plane.service.create(control_plane.team_id, request(template="mine"))
        claimed = await control_plane.store.pod_of(view.sandbox.id)
        assert claimed is not None
        assert claimed.id == pod.id


class EngineWithoutImages(InMemoryEngine):
    """Knows no image until it is told that it does."""

    def __init__(self) -> None:
        super().__init__({}, address_of=lambda spec: f"{spec.pod_id}.pod")
        self.starts = asyncio.Event()

    async def start(self, spec: PodSpec) -> Pod:
        self.starts.set()
        return await super().start(spec)


async def test_a_pod_that_cannot_be_made_leaves_nothing_and_is_tried_again_later(
    start_control_plane: StartControlPlane,
) -> None:
    engine = EngineWithoutImages()
    async with start_control_plane(engine=engine, warm=1) as control_plane:
        async with asyncio.timeout(BOUND_S):
            await engine.starts.wait()
            while await control_plane.store.pods():
                await asyncio.sleep(0.002)
        (pool,) = control_plane.service.pools()
        assert (pool.wanted, pool.waiting) == (1, 0)
