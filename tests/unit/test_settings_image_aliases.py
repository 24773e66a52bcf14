"""How an operator writes which image stands for which."""

from __future__ import annotations

import pytest

from app.settings import SettingsError, read_settings


@pytest.mark.parametrize(
    "text",
    ["ubuntu:22.04=corp/ubuntu:7, e2bdev/x=corp/x", '{"ubuntu:22.04": "corp/ubuntu:7", "e2bdev/x": "corp/x"}'],
)
def test_aliases_are_pairs_or_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SANDGATE_IMAGE_ALIASES", text)
    assert read_settings().image_aliases == {"ubuntu:22.04": "corp/ubuntu:7", "e2bdev/x": "corp/x"}


@pytest.mark.parametrize("text", ["ubuntu", "=corp/ubuntu", "ubuntu=", '{"ubuntu": 5}', '{"ubuntu"'])
def test_anything_else_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SANDGATE_IMAGE_ALIASES", text)
    with pytest.raises(SettingsError, match="SANDGATE_IMAGE_ALIASES"):
        read_settings()
