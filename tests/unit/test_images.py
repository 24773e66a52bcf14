"""Tags of the sandbox images: what changes which of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.engines.images import ImageTags, image_tags
from app.errors import EngineError
from app.settings import ROOT

FOLDERS = ("base", "workspace", "gateway", "stdio_bridge")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        (tmp_path / folder / "deeper").mkdir(parents=True)
        (tmp_path / folder / "Dockerfile").write_text("FROM something\n")
        (tmp_path / folder / "deeper" / "module.py").write_text("print('hello')\n")
    return tmp_path


def tags(source: Path, *, base_image: str = "debian:trixie-slim", ca_bundle: Path | None = None) -> ImageTags:
    return image_tags(source, base_image=base_image, ca_bundle=ca_bundle)


def changed(before: ImageTags, after: ImageTags) -> set[str]:
    return {name for name in ("base", "workspace", "gateway") if getattr(before, name) != getattr(after, name)}


ALL = {"base", "workspace", "gateway"}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("base", ALL),
        ("workspace", {"workspace"}),
        ("gateway", {"gateway"}),
        ("stdio_bridge", {"gateway"}),
    ],
)
def test_a_change_gives_new_tags_to_its_image_and_to_what_stands_on_it(
    source: Path, folder: str, expected: set[str]
) -> None:
    before = tags(source)
    (source / folder / "deeper" / "module.py").write_text("print('goodbye')\n")
    assert changed(before, tags(source)) == expected


def test_an_added_file_a_new_name_and_the_executable_bit_count(source: Path) -> None:
    seen = [tags(source)]
    (source / "gateway" / "new.py").touch()
    seen.append(tags(source))
    (source / "gateway" / "new.py").rename(source / "gateway" / "newer.py")
    seen.append(tags(source))
    (source / "gateway" / "newer.py").chmod(0o755)
    seen.append(tags(source))
    assert len({each.gateway for each in seen}) == 4
    assert {each.workspace for each in seen} == {seen[0].workspace}


def test_bytes_that_move_from_one_file_to_the_next_count(source: Path) -> None:
    first, second = source / "gateway" / "a", source / "gateway" / "b"
    first.write_text("12")
    second.write_text("3")
    before = tags(source)
    first.write_text("1")
    second.write_text("23")
    assert changed(before, tags(source)) == {"gateway"}


def test_byte_code_hidden_files_permissions_of_others_and_times_do_not_count(source: Path) -> None:
    module = source / "gateway" / "deeper" / "module.py"
    module.chmod(0o644)
    before = tags(source)
    (source / "gateway" / "__pycache__").mkdir()
    (source / "gateway" / "__pycache__" / "module.cpython-313.pyc").write_bytes(b"\0")
    (source / "gateway" / ".cache").write_text("left by an editor")
    module.chmod(0o600)
    module.write_text(module.read_text())
    assert tags(source) == before


def test_the_same_files_elsewhere_have_the_same_tags(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "sandbox_images"
    shutil.copytree(source, copy)
    assert tags(copy) == tags(source)


def test_the_image_below_and_the_certificates_count_for_all_images(source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("one certificate")
    plain = tags(source)
    assert changed(plain, tags(source, base_image="registry.example/debian:trixie")) == ALL
    trusting = tags(source, ca_bundle=bundle)
    assert changed(plain, trusting) == ALL
    bundle.write_text("another certificate")
    assert changed(trusting, tags(source, ca_bundle=bundle)) == ALL


def test_the_path_of_the_certificates_does_not_count(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pem", tmp_path / "second.pem"
    first.write_text("certificate")
    second.write_text("certificate")
    assert tags(source, ca_bundle=first) == tags(source, ca_bundle=second)


def test_a_missing_ca_bundle_is_named_with_its_setting(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"SANDGATE_CA_BUNDLE.*absent\.pem"):
        tags(source, ca_bundle=tmp_path / "absent.pem")


def test_tags_of_this_checkout_are_image_references() -> None:
    found = tags(ROOT / "sandbox_images")
    for name in ("base", "workspace", "gateway"):
        repository, _, digest = getattr(found, name).partition(":")
        assert repository == f"sandgate/{name}"
        assert len(digest) == 12
        int(digest, 16)
