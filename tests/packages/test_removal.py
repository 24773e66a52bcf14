"""Packages are taken out of the store: what nothing else has goes, the rest of the store is as it was."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from app.engines.in_memory_engine import InMemoryEngine
from app.engines.jobs import JobOutcome, JobSpec, Report
from app.errors import EngineError
from app.packages import Installed, PackageLocks, PackagesInUseError, PackageStore
from app.settings import ROOT

INSTALLER = ROOT / "sandbox_images" / "installer"


@pytest.fixture
def remover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program of the job, with a store of two installations that share a file."""
    spec = importlib.util.spec_from_file_location("remove_packages", INSTALLER / "remove_packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    store = tmp_path / "store"
    for folder in (".installed", ".files/aa", "old/lib", "new/lib"):
        (store / folder).mkdir(parents=True)
    for name, size, places in (("own", 1000, ["old/lib/own"]), ("both", 50, ["old/lib/both", "new/lib/both"])):
        pooled = store / ".files" / "aa" / name
        pooled.write_bytes(b"x" * size)
        for place in places:
            os.link(pooled, store / place)
    (store / "old" / "lib" / "loop").symlink_to("own")
    for digest in ("old", "new"):
        (store / ".installed" / f"{digest}.json").write_text("{}")
    monkeypatch.setattr(module, "STORE", store)
    monkeypatch.setattr(module, "REQUEST", tmp_path / "removal.json")
    return module


def run(remover: ModuleType, capsys: pytest.CaptureFixture[str], *digests: str, remove: bool) -> int:
    remover.REQUEST.write_text(json.dumps({"digests": digests, "remove": remove}))
    remover.main()
    freed: int = json.loads(capsys.readouterr().out.splitlines()[-1])["bytes"]
    return freed


def files_of(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in store.rglob("*") if not path.is_dir()}


def test_what_only_the_removed_ones_have_goes_and_is_what_it_frees(
    remover: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(remover, capsys, "old", "absent", remove=True) == 1000
    assert files_of(remover.STORE) == {".installed/new.json", ".files/aa/both", "new/lib/both"}
    assert not (remover.STORE / "old").exists()
    assert run(remover, capsys, "old", "new", remove=True) == 50
    assert files_of(remover.STORE) == set()


def test_a_look_at_what_it_would_free_changes_nothing(remover: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(remover.STORE)
    assert run(remover, capsys, "old", "new", remove=False) == 1050
    assert files_of(remover.STORE) == before


def test_a_removal_that_another_one_overtakes_goes_on(remover: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (remover.STORE / ".files" / "aa" / "gone").symlink_to("nowhere")
    assert run(remover, capsys, "old", remove=True) == 1000
    assert not (remover.STORE / ".files" / "aa" / "own").exists()


@pytest.fixture
def engine() -> InMemoryEngine:
    engine = InMemoryEngine({"image:1": {}})
    marker = {"registry": "npm", "name": "@acme/mcp", "version": "1.0.0", "bytes": 5}
    engine.jobs.shared["mcp-store"] = {".installed/old.json": json.dumps(marker).encode(), ".installed/.new": b"{"}
    return engine


def store_on(engine: InMemoryEngine) -> PackageStore:
    return PackageStore(engine, image="image:1", installer=INSTALLER / "install_package.py", locks=PackageLocks([]))


async def test_a_removal_is_a_job_with_the_digests_and_nothing_else(engine: InMemoryEngine) -> None:
    async def remove(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=0, output='sandgate: 1 of 1 removed\n{"bytes": 7}\n')

    engine.jobs.program = remove
    store = store_on(engine)
    assert await store.installed() == {"old": Installed(registry="npm", name="@acme/mcp", version="1.0.0")}
    assert await store.remove(["old"]) == 7
    (job,) = engine.jobs.started
    files = {file.path: file.content for file in job.files}
    assert json.loads(files["/run/sandgate/removal.json"]) == {"digests": ["old"], "remove": True}
    assert files[job.command[-1]] == (INSTALLER / "remove_packages.py").read_bytes()


async def test_nothing_is_removed_while_sandboxes_of_other_homes_could_use_it(engine: InMemoryEngine) -> None:
    engine.jobs.others = {"other-home"}
    with pytest.raises(PackagesInUseError, match="other-home"):
        await store_on(engine).remove(["old"])
    assert engine.jobs.started == []


async def test_a_removal_that_fails_tells_why(engine: InMemoryEngine) -> None:
    async def fails(spec: JobSpec, report: Report) -> JobOutcome:
        return JobOutcome(exit_code=1, output="sandgate: Read-only file system: /mnt/store/old\n")

    engine.jobs.program = fails
    with pytest.raises(EngineError, match="Read-only file system"):
        await store_on(engine).remove(["old"])
