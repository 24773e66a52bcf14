"""The program of the installing job: how a finished environment gets into the store beside others that do the same."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from app.settings import ROOT


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With an empty store, and a lock."""
    path = ROOT / "sandbox_images" / "installer" / "install_package.py"
    spec = importlib.util.spec_from_file_location("install_package", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for folder in ("store", "lock", "environment"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lock" / "requirements.txt").write_text("acme==1\n")
    (tmp_path / "environment" / "program").write_text("acme")
    monkeypatch.setattr(module, "STORE", tmp_path / "store")
    monkeypatch.setattr(module, "LOCK", tmp_path / "lock")
    return module


def place(installer: ModuleType) -> None:
    request = {"registry": "npm", "name": "acme", "version": "1"}
    installer.place(installer.STORE.parent / "environment", "digest", request)


def test_an_installation_is_placed_whole_with_its_lock_and_its_marker(installer: ModuleType) -> None:
    place(installer)
    assert (installer.STORE / "digest" / "program").read_text() == "acme"
    assert (installer.STORE / "digest" / ".sandgate-lock" / "requirements.txt").read_text() == "acme==1\n"
    assert (installer.STORE / ".installed" / "digest.json").exists()


def test_what_others_take_away_meanwhile_does_not_end_an_installation(installer: ModuleType) -> None:
    (installer.STORE / ".new-renamed").symlink_to("nowhere")  # seen, and gone when it is looked at
    removed = installer.STORE / ".new-removed"
    removed.touch()  # no directory any more when it is removed
    os.utime(removed, (0, 0))
    place(installer)
    assert (installer.STORE / ".installed" / "digest.json").exists()


def test_what_a_killed_installation_left_is_removed_in_time(installer: ModuleType) -> None:
    for name in ("old", "young", "digest"):
        (installer.STORE / f".new-{name}" / "lib").mkdir(parents=True)
    os.utime(installer.STORE / ".new-old", (0, 0))
    place(installer)
    assert [left.name for left in installer.STORE.glob(".new-*")] == [".new-young"]
