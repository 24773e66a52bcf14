"""The store: a package is installed once, and what goes wrong is told with the installer's words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from app.catalog.package import Package
from app.engines.in_memory_engine import InMemoryEngine
from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import EngineOutOfSpace
from app.packages import PackageInstallError, PackageLocks, PackageStore

PACKAGE = Package(registry="pypi", name="acme-mcp", version="1.0.0")
INSTALLER = Path(__file__).resolve().parents[2] / "sandbox_images" / "installer" / "install_package.py"


@pytest.fixture
def engine() -> InMemoryEngine:
    engine = InMemoryEngine({"image:1": {}})

    async def install(spec: JobSpec, report: Report) -> JobOutcome:
        report("installing")
        await asyncio.sleep(0)
        engine.jobs.shared.setdefault("mcp-store", {})[f".installed/{spec.name.removeprefix('install-')}.json"] = b"{}"
        return JobOutcome(exit_code=0, output="installing\n")

    engine.jobs.program = install
    return engine


def store_on(engine: InMemoryEngine, *directories: Path) -> PackageStore:
    return PackageStore(engine, image="image:1", installer=INSTALLER, locks=PackageLocks(directories))


async def test_what_is_absent_is_installed_once(engine: InMemoryEngine) -> None:
    store = store_on(engine)
    lines: list[str] = []
    assert not await store.is_installed(PACKAGE)
    await store.ensure("acme", PACKAGE, lines.append)
    await store.ensure("acme", PACKAGE, lines.append)
    assert await store.is_installed(PACKAGE)
    assert (len(engine.jobs.started), lines) == (1, ["installing"])


async def test_an_installation_outlives_the_process_that_made_it(engine: InMemoryEngine) -> None:
    await store_on(engine).ensure("acme", PACKAGE)
    assert await store_on(engine).is_installed(PACKAGE)


async def test_what_others_may_have_removed_is_looked_for_again(engine: InMemoryEngine) -> None:
    store = store_on(engine)
    await store.ensure("acme", PACKAGE)
    engine.jobs.shared.clear()
    assert await store.is_installed(PACKAGE)
    store.forget()
    await store.ensure("acme", PACKAGE)
    assert len(engine.jobs.started) == 2


async def test_a_package_is_resolved_anew_beside_what_is_installed(engine: InMemoryEngine) -> None:
    store = store_on(engine)
    await store.ensure("acme", PACKAGE)
    files = engine.jobs.shared["mcp-store"]
    files[f"{PACKAGE.digest}/.sandgate-lock/requirements.txt"] = b"dependency==1\n"

    async def resolve(spec: JobSpec, report: Report) -> JobOutcome:
        given = {file.path: file.content for file in spec.files}
        if (removal := given.get("/run/sandgate/removal.json")) is not None:
            for digest in json.loads(removal)["digests"]:
                del files[f"{digest}/.sandgate-lock/requirements.txt"]
            return JobOutcome(exit_code=0, output='{"bytes": 0}\n')
        asked = json.loads(given["/run/sandgate/package.json"])
        assert asked["lock"] is None
        assert not any(path.startswith("/run/sandgate/lock/") for path in given)
        files[f"{asked['digest']}/.sandgate-lock/requirements.txt"] = b"dependency==2\n"
        return JobOutcome(exit_code=0, output="installed\n")

    engine.jobs.program = resolve
    locked = PACKAGE.model_copy(update={"lock": f"sha256:{'0' * 64}"})
    for package in (PACKAGE, locked):
        assert await store.resolve("acme", package) == {"requirements.txt": b"dependency==2\n"}
    assert await store.lock_of(PACKAGE) == {"requirements.txt": b"dependency==1\n"}
    assert len(files) == 2


async def test_all_who_need_a_package_at_once_ask_for_one_job(engine: InMemoryEngine) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(store_on(engine).ensure("acme", PACKAGE))
    assert {spec.name for spec in engine.jobs.started} == {f"install-{PACKAGE.digest}"}


async def test_the_job_gets_the_package_and_its_lock_and_nothing_else(engine: InMemoryEngine, tmp_path: Path) -> None:
    locks = PackageLocks([tmp_path])
    package = PACKAGE.model_copy(update={"lock": locks.write(PACKAGE, {"requirements.txt": b"acme-mcp==1.0.0\n"})})
    await store_on(engine, tmp_path).ensure("acme", package)
    (spec,) = engine.jobs.started
    files = {file.path: file.content for file in spec.files}
    assert json.loads(files.pop("/run/sandgate/package.json"))["digest"] == package.digest
    assert files == {
        "/run/sandgate/install_package.py": INSTALLER.read_bytes(),
        "/run/sandgate/lock/requirements.txt": b"acme-mcp==1.0.0\n",
    }


async def test_a_failed_installation_names_server_package_and_the_last_lines(engine: InMemoryEngine) -> None:
    async def fail(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=1, output="error: no such thing\nsandgate: uv pip compile exited with code 1\n")

    engine.jobs.program = fail
    with pytest.raises(PackageInstallError) as caught:
        await store_on(engine).ensure("acme", PACKAGE)
    assert str(caught.value) == (
        "MCP server 'acme' needs acme-mcp 1.0.0 (PyPI), which could not be installed:"
        " uv pip compile exited with code 1.\n  | error: no such thing"
    )
    assert not await store_on(engine).is_installed(PACKAGE)


@pytest.mark.parametrize("code", [124, 137])
async def test_an_installation_that_takes_too_much_says_what_it_may_take(engine: InMemoryEngine, code: int) -> None:
    async def hang(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=code, output="sandgate: installing\n")

    engine.jobs.program = hang
    with pytest.raises(PackageInstallError, match=r"more than 900 s or more memory than 3072 MiB"):
        await store_on(engine).ensure("acme", PACKAGE)


async def test_a_full_disk_is_told_apart(engine: InMemoryEngine) -> None:
    async def fill(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=28, output="sandgate: No space left on device\n")

    engine.jobs.program = fill
    with pytest.raises(EngineOutOfSpace):
        await store_on(engine).ensure("acme", PACKAGE)


async def test_an_outcome_that_somebody_else_took_is_looked_up_in_the_store(engine: InMemoryEngine) -> None:
    outcomes = iter([None, 0])
    installed = engine.jobs.program

    async def taken(spec: JobSpec, report: Report) -> JobOutcome:
        if next(outcomes) == 0:
            return await installed(spec, report)
        return JobOutcome(exit_code=None, output="")

    engine.jobs.program = taken
    await store_on(engine).ensure("acme", PACKAGE)
    assert len(engine.jobs.started) == 2


def test_whatever_decides_what_is_installed_decides_the_digest() -> None:
    variants = [
        PACKAGE,
        PACKAGE.model_copy(update={"version": "1.0.1"}),
        PACKAGE.model_copy(update={"registry": "npm"}),
        PACKAGE.model_copy(update={"constraints": ("mcp<2",)}),
        PACKAGE.model_copy(update={"additional": ("rich",)}),
        PACKAGE.model_copy(update={"install_scripts": True}),
        PACKAGE.model_copy(update={"lock": f"sha256:{'0' * 64}"}),
    ]
    assert len({package.digest for package in variants}) == len(variants)
    assert PACKAGE.directory == f"/opt/mcp-store/{PACKAGE.digest}"
