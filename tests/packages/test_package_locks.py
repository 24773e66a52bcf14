"""Locks of packages: found by their hash, the operator's own first, and there for every shipped package."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalog import Catalog
from app.catalog.package import Package
from app.packages import PackageLockError, PackageLocks
from app.packages.locks import digest_of

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
PACKAGE = Package(registry="npm", name="@acme/mcp", version="1.0.0")
FILES = {"package-lock.json": b'{"lockfileVersion": 3}\n', "deep/down.txt": b"x"}


def test_every_shipped_package_has_the_lock_that_its_manifest_names() -> None:
    locks = PackageLocks([CATALOG / "locks"])
    packages = [definition.package for definition in Catalog.load(CATALOG / "servers") if definition.package]
    assert len(packages) > 100
    assert all(locks.read(package) for package in packages)


def test_every_lock_belongs_to_a_shipped_package() -> None:
    named = {f"{d.package.registry}/{d.package.name}" for d in Catalog.load(CATALOG / "servers") if d.package}
    files = [*(CATALOG / "locks" / "pypi").glob("*/requirements.txt")]
    files += [file for depth in ("*", "*/*") for file in (CATALOG / "locks" / "npm").glob(f"{depth}/package-lock.json")]
    assert {file.parent.relative_to(CATALOG / "locks").as_posix() for file in files} == named


def test_a_lock_that_was_written_is_read_back(tmp_path: Path) -> None:
    locks = PackageLocks([tmp_path / "shipped", tmp_path / "own"])
    named = PACKAGE.model_copy(update={"lock": locks.write(PACKAGE, FILES)})
    assert locks.read(named) == FILES
    assert not (tmp_path / "shipped").exists()


def test_writing_a_lock_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    locks = PackageLocks([tmp_path])
    locks.write(PACKAGE, FILES)
    fewer = {"package-lock.json": b"{}"}
    assert locks.read(PACKAGE.model_copy(update={"lock": locks.write(PACKAGE, fewer)})) == fewer


def test_a_package_without_a_lock_has_none(tmp_path: Path) -> None:
    assert PackageLocks([tmp_path]).read(PACKAGE) is None


def test_another_lock_than_the_one_that_is_named_is_refused(tmp_path: Path) -> None:
    locks = PackageLocks([tmp_path])
    locks.write(PACKAGE, FILES)
    with pytest.raises(PackageLockError, match="is not the one that its manifest names"):
        locks.read(PACKAGE.model_copy(update={"lock": digest_of({"package-lock.json": b"{}"})}))


def test_an_absent_lock_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PackageLockError, match=r"The lock of @acme/mcp 1\.0\.0 \(npm\) is missing"):
        PackageLocks([tmp_path]).read(PACKAGE.model_copy(update={"lock": digest_of(FILES)}))


def test_names_and_contents_of_all_files_decide_the_hash() -> None:
    variants = [FILES, {**FILES, "deep/down.txt": b"y"}, {"package-lock.json": FILES["package-lock.json"]}]
    assert len({digest_of(files) for files in variants}) == 3
