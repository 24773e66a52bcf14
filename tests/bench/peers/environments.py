"""Throw-away environments for the peers, of pinned versions with hashes.

To move to newer versions, for each file in `requirements/`:
`uv pip compile --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 <name>.in -o <name>.txt`
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("requirements")
_INSTALL_LIMIT_S = 300
_UV = Path(sys.executable).with_name("uv")


@dataclass(frozen=True, slots=True)
class Environment:
    folder: Path
    version: str
    """Of the peer itself."""

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)


def make_environment(name: str, package: str, folder: Path) -> Environment:
    """Install `requirements/<name>.txt` into a new environment. Raises: subprocess.SubprocessError."""
    requirements = _REQUIREMENTS / f"{name}.txt"
    _run(["venv", "--quiet", "--python", sys.executable, str(folder)])
    python = str(folder / "bin" / "python")
    _run(["pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(requirements)])
    found = re.search(rf"^{re.escape(package)}==(\S+)", requirements.read_text(), re.MULTILINE)
    assert found, f"{requirements} does not pin {package}"
    return Environment(folder, found[1])


def _run(command: list[str]) -> None:
    subprocess.run([str(_UV), *command], check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
