"""What every engine promises (`app.engines.interface`), tested on each of them."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from ipaddress import ip_address

import pytest

from app.engines.interface import ContainerStatus, VolumeMount
from app.errors import EngineError, ImageMissing, PodGone
from tests.engine.subjects import LINES, Subject, container, pod, states, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_engine_says_who_it_is(subject: Subject) -> None:
    info = await subject.engine.check()
    assert info.name
    assert info.version


async def test_preparing_again_changes_nothing(subject: Subject) -> None:
    running = await subject.engine.start(pod("again", container(subject.image)))
    await subject.engine.prepare()
    assert await subject.engine.observe() == {"again": running}


async def test_a_started_pod_runs_all_containers_in_order_at_one_address(subject: Subject) -> None:
    spec = pod("two", container(subject.image, "zeta"), container(subject.image, "alpha"), labels={"team": "red"})
    started = await subject.engine.start(spec)
    assert started.is_running
    assert ip_address(started.address or "")
    assert started.containers == (
        ContainerStatus(role="zeta", state="running"),
        ContainerStatus(role="alpha", state="running"),
    )
    assert started.labels == {"team": "red"}
    assert await subject.engine.observe() == {"two": started}


async def test_starting_a_running_pod_leaves_it_as_it_is(subject: Subject) -> None:
    spec = pod("same", container(subject.image, "a"), container(subject.image, "b"))
    assert await subject.engine.start(spec) == await subject.engine.start(spec)


async def test_pods_are_observed_side_by_side(subject: Subject) -> None:
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(subject.engine.start(pod(f"p{n}", container(subject.image)))) for n in range(3)]
    assert await subject.engine.observe() == {f"p{n}": start.result() for n, start in enumerate(starts)}


async def test_a_stopped_pod_is_gone(subject: Subject) -> None:
    await subject.engine.start(pod("gone", container(subject.image, volumes={"shared": "/shared"})))
    await subject.engine.stop("gone")
    assert await subject.engine.observe() == {}


async def test_stopping_what_is_absent_is_silent(subject: Subject) -> None:
    await subject.engine.start(pod("once", container(subject.image)))
    await subject.engine.stop("once")
    await subject.engine.stop("once")
    await subject.engine.stop("never")


async def test_two_stops_at_once_both_return(subject: Subject) -> None:
    await subject.engine.start(pod("twice", container(subject.image, "a"), container(subject.image, "b")))
    async with asyncio.TaskGroup() as group:
        group.create_task(subject.engine.stop("twice"))
        group.create_task(subject.engine.stop("twice"))
    assert await subject.engine.observe() == {}


async def test_a_stopped_pod_can_be_started_again(subject: Subject) -> None:
    spec = pod("back", container(subject.image, volumes={"shared": "/shared"}))
    await subject.engine.start(spec)
    await subject.engine.stop("back")
    assert (await subject.engine.start(spec)).is_running


async def test_a_missing_image_is_named_and_leaves_nothing_that_stop_does_not_remove(subject: Subject) -> None:
    spec = pod("half", container(subject.image, "a"), container("sandgate/absent:1", "b"))
    with pytest.raises(ImageMissing, match="sandgate/absent:1") as caught:
        await subject.engine.start(spec)
    assert caught.value.image == "sandgate/absent:1"
    assert not any(seen.is_running for seen in (await subject.engine.observe()).values())
    await subject.engine.stop("half")
    assert await subject.engine.observe() == {}


async def test_a_container_that_exits_is_seen_with_its_code(subject: Subject) -> None:
    await subject.engine.start(pod("dies", container(subject.image, "a"), container(subject.image, "b")))
    await subject.exit_container("dies", "b", exit_code=7)
    seen = (await subject.engine.observe())["dies"]
    assert not seen.is_running
    assert seen.address
    assert seen.containers[1] == ContainerStatus(role="b", state="exited", exit_code=7)


async def test_a_container_that_was_taken_away_is_seen_as_absent_and_made_again(subject: Subject) -> None:
    spec = pod("taken", container(subject.image, "a"), container(subject.image, "b"))
    await subject.engine.start(spec)
    await subject.remove_container("taken", "b")
    seen = (await subject.engine.observe())["taken"]
    assert not seen.is_running
    assert states(seen) == {"a": "running", "b": "absent"}
    assert (await subject.engine.start(spec)).is_running


async def test_a_pod_whose_first_container_exited_has_no_address(subject: Subject) -> None:
    await subject.engine.start(pod("headless", container(subject.image, "a"), container(subject.image, "b")))
    await subject.exit_container("headless", "a", exit_code=0)
    seen = (await subject.engine.observe())["headless"]
    assert seen.address is None
    assert seen.containers[0] == ContainerStatus(role="a", state="exited", exit_code=0)


@pytest.mark.parametrize("loss", ["exited", "removed"])
async def test_a_pod_that_lost_its_first_container_is_rebuilt(subject: Subject, loss: str) -> None:
    spec = pod("rebuilt", container(subject.image, "a"), container(subject.image, "b"))
    await subject.engine.start(spec)
    if loss == "exited":
        await subject.exit_container("rebuilt", "a", exit_code=1)
    else:
        await subject.remove_container("rebuilt", "a")
    assert (await subject.engine.start(spec)).is_running


async def test_a_stop_ends_a_start_that_is_under_way(subject: Subject) -> None:
    spec = pod("raced", *(container(subject.image, role) for role in "abc"))
    start = asyncio.create_task(subject.engine.start(spec))
    await until(lambda: _is_begun(subject, "raced"))
    await subject.engine.stop("raced")
    with pytest.raises(EngineError, match="raced"):
        await start
    assert await subject.engine.observe() == {}


async def test_a_stop_after_a_cancelled_start_leaves_nothing(subject: Subject) -> None:
    spec = pod("cut", *(container(subject.image, role) for role in "abc"))
    start = asyncio.create_task(subject.engine.start(spec))
    await until(lambda: _is_begun(subject, "cut"))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await subject.engine.stop("cut")
    assert await subject.engine.observe() == {}
    assert (await subject.engine.start(spec)).is_running


async def test_the_log_gives_the_last_lines(subject: Subject) -> None:
    await subject.engine.start(pod("talks", container(subject.image, "a")))
    await subject.speak("talks", "a")
    assert await subject.engine.logs("talks", "a", tail=2) == f"{LINES[1]}\n{LINES[2]}\n"


async def test_the_log_of_what_is_absent_is_empty(subject: Subject) -> None:
    assert await subject.engine.logs("never", "a", tail=10) == ""


async def test_images_are_known_by_name(subject: Subject) -> None:
    assert await subject.engine.has_image(subject.image)
    assert not await subject.engine.has_image("sandgate/absent:1")


async def test_a_file_of_an_image_can_be_read(subject: Subject) -> None:
    assert (await subject.engine.read_file(subject.image, "/etc/debian_version")).startswith(b"13")


async def test_reading_an_absent_file_names_it(subject: Subject) -> None:
    with pytest.raises(EngineError, match="/etc/absent"):
        await subject.engine.read_file(subject.image, "/etc/absent")


async def test_reading_from_an_absent_image_names_it(subject: Subject) -> None:
    with pytest.raises(ImageMissing, match="sandgate/absent:1"):
        await subject.engine.read_file("sandgate/absent:1", "/etc/debian_version")


async def _is_begun(subject: Subject, pod_id: str) -> bool:
    return pod_id in await subject.engine.observe()


async def test_a_paused_pod_goes_on_where_it_was(subject: Subject) -> None:
    started = await subject.engine.start(pod("nap", container(subject.image, "a"), container(subject.image, "b")))
    for _ in range(2):
        await subject.engine.pause("nap")
        assert states((await subject.engine.observe())["nap"]) == {"a": "paused", "b": "paused"}
    for _ in range(2):
        assert await subject.engine.resume("nap") == started


async def test_a_halted_pod_runs_again(subject: Subject) -> None:
    await subject.engine.start(pod("halt", container(subject.image, "a"), container(subject.image, "b")))
    await subject.engine.pause("halt")
    for _ in range(2):
        await subject.engine.halt("halt")
        assert states((await subject.engine.observe())["halt"]) == {"a": "exited", "b": "exited"}
    resumed = await subject.engine.resume("halt")
    assert resumed.is_running
    assert await subject.engine.observe() == {"halt": resumed}


async def test_a_boot_id_needs_a_container_that_runs(subject: Subject) -> None:
    await subject.engine.start(pod("boot", container(subject.image)))
    await subject.engine.set_boot_id("boot", "only", "9a3e1d7c-0000-4000-8000-000000000001")
    await subject.engine.halt("boot")
    with pytest.raises(EngineError):
        await subject.engine.set_boot_id("boot", "only", "9a3e1d7c-0000-4000-8000-000000000001")


async def test_a_pod_that_lost_a_container_cannot_be_paused_halted_or_resumed(subject: Subject) -> None:
    await subject.engine.start(pod("torn", container(subject.image, "a"), container(subject.image, "b")))
    await subject.remove_container("torn", "b")
    for verb in (subject.engine.pause, subject.engine.halt, subject.engine.resume):
        for pod_id in ("torn", "unknown"):
            with pytest.raises(PodGone, match=pod_id):
                await verb(pod_id)


async def test_a_pod_starts_from_a_snapshot_of_another(subject: Subject) -> None:
    await subject.engine.start(pod("model", container(subject.image)))
    await subject.engine.snapshot("model", "only", "sandgate-test/snapshot:model")
    assert (await subject.engine.observe())["model"].is_running
    try:
        await subject.engine.start(pod("copy", container("sandgate-test/snapshot:model")))
        assert not await subject.engine.remove_image("sandgate-test/snapshot:model")
        await subject.engine.stop("copy")
    finally:
        await subject.engine.stop("copy")
        for _ in range(2):
            assert await subject.engine.remove_image("sandgate-test/snapshot:model")
    assert not await subject.engine.has_image("sandgate-test/snapshot:model")
    with pytest.raises(PodGone, match="unknown"):
        await subject.engine.snapshot("unknown", "only", "sandgate-test/snapshot:none")


async def test_lines_can_carry_the_moment_they_were_written(subject: Subject) -> None:
    await subject.engine.start(pod("timed", container(subject.image)))
    await subject.speak("timed", "only")
    lines = (await subject.engine.logs("timed", "only", tail=2, timestamps=True)).splitlines()
    assert [line.partition(" ")[2] for line in lines] == list(LINES[-2:])
    moments = [datetime.fromisoformat(line.partition(" ")[0]) for line in lines]
    assert moments == sorted(moments)
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)


async def test_a_volume_outlives_the_pods_that_share_it(subject: Subject) -> None:
    await subject.engine.create_volume("kept")
    try:
        mounted = container(subject.image, mounts=(VolumeMount(volume="kept", path="/data"),))
        await subject.engine.start(pod("one", mounted))
        await subject.engine.start(pod("other", mounted))
        assert await subject.engine.remove_volume("kept") is False
        await subject.engine.stop("one")
        await subject.engine.stop("other")
        await subject.engine.create_volume("kept")
        assert await subject.engine.volumes() == {"kept"}
    finally:
        assert await subject.engine.remove_volume("kept") is True
    assert await subject.engine.volumes() == frozenset()
    assert await subject.engine.remove_volume("kept") is True


async def test_a_pod_that_mounts_a_volume_which_is_gone_is_not_started(subject: Subject) -> None:
    mounted = container(subject.image, mounts=(VolumeMount(volume="never-made", path="/data"),))
    with pytest.raises(EngineError, match="never-made"):
        await subject.engine.start(pod("without", mounted))
    await subject.engine.stop("without")
    assert await subject.engine.volumes() == frozenset()


async def test_containers_are_attached_to_a_running_pod_and_detached_from_it(subject: Subject) -> None:
    await subject.engine.start(pod("more", container(subject.image, "a", volumes={"slot": "/slot"})))
    extra = (
        container(subject.image, "extra-1", volumes={"slot": "/slot", "extra-1-own": "/own"}),
        container(subject.image, "extra-2", has_network=False),
    )
    assert await subject.engine.attach("more", extra) == {}
    assert await subject.engine.attach("more", extra) == {}
    seen = (await subject.engine.observe())["more"]
    assert [(one.role, one.state, one.is_attached) for one in seen.containers] == [
        ("a", "running", False),
        ("extra-1", "running", True),
        ("extra-2", "running", True),
    ]
    await subject.engine.detach("more", ["extra-1", "a", "never"])
    await subject.engine.detach("more", ["extra-1"])
    assert states((await subject.engine.observe())["more"]) == {"a": "running", "extra-2": "running"}
    await subject.engine.stop("more")
    assert await subject.engine.observe() == {}


async def test_a_pod_is_whole_without_what_is_attached_and_takes_it_along(subject: Subject) -> None:
    await subject.engine.start(pod("taken-along", container(subject.image, "a")))
    await subject.engine.attach("taken-along", [container(subject.image, "extra")])
    await subject.engine.pause("taken-along")
    assert states((await subject.engine.observe())["taken-along"]) == {"a": "paused", "extra": "paused"}
    await subject.engine.resume("taken-along")
    await subject.engine.halt("taken-along")
    assert states((await subject.engine.observe())["taken-along"]) == {"a": "exited", "extra": "exited"}
    assert states(await subject.engine.resume("taken-along")) == {"a": "running", "extra": "running"}
    await subject.remove_container("taken-along", "extra")
    assert (await subject.engine.observe())["taken-along"].is_running


async def test_what_cannot_be_attached_is_told_by_role_and_the_rest_is(subject: Subject) -> None:
    await subject.engine.start(pod("partly", container(subject.image, "a")))
    absent, there = container("sandgate/absent:1", "extra-1"), container(subject.image, "extra-2")
    refused = await subject.engine.attach("partly", [absent, there])
    assert list(refused) == ["extra-1"]
    assert "sandgate/absent:1" in refused["extra-1"]
    assert states((await subject.engine.observe())["partly"])["extra-2"] == "running"


async def test_nothing_is_attached_to_a_pod_that_is_gone(subject: Subject) -> None:
    with pytest.raises(PodGone):
        await subject.engine.attach("nowhere", [container(subject.image, "extra")])
    await subject.engine.detach("nowhere", ["extra"])


async def test_a_pinned_name_names_the_image(subject: Subject) -> None:
    pinned = await subject.engine.pin_image(subject.image)
    assert pinned is not None
    assert await subject.engine.pin_image(pinned) == pinned
    assert await subject.engine.pin_image("sandgate/absent:1") is None
