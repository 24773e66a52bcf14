"""E2B's own command line, with nothing changed but its environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.compatibility.command_line import DOES, E2b
from tests.e2e.compatibility.features import COMMANDS, Feature
from tests.e2e.compatibility.page import name_of
from tests.e2e.installation import Installation

pytestmark = [pytest.mark.docker, pytest.mark.e2e]


@pytest.fixture
def e2b(gate: Installation, node: str, node_modules: Path, tmp_path: Path) -> E2b:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
    command = [node, str(node_modules / "@e2b" / "cli" / "dist" / "index.js")]
    # It looks for its settings in the home, and there for newer versions of itself.
    own = {"HOME": str(tmp_path), "NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"}
    return E2b(command, {**inherited, **own, **gate.sdk_environment}, tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.key)
def test_the_command_line_does(command: Feature, e2b: E2b, record_property: Callable[[str, object], None]) -> None:
    record_property(name_of(command), False)
    DOES[command.key](e2b)
    record_property(name_of(command), True)
