"""Installs what a package-lock.json names."""

from __future__ import annotations

import subprocess
from pathlib import Path

_TRIES = 2
"""A registry that was not reached once says nothing about Sandgate."""
_TRY_S = 240


def install(folder: Path) -> None:
    """Fills the folder's `node_modules` anew."""
    command = ["npm", "ci", "--no-audit", "--no-fund"]
    said = ""
    for _ in range(_TRIES):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TRY_S, check=False)
        if done.returncode == 0:
            return
        said = done.stderr
    raise AssertionError(f"npm ci failed in {folder}:\n{said}")
