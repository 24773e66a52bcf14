"""Memory of processes, found by where their program lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.verification.processes import memory_mib


def test_a_program_and_its_children_are_counted_together(tmp_path: Path) -> None:
    child = "import time; print('up', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        both = memory_mib(str(tmp_path))
        process.kill()
    assert both is not None
    assert both > 5


def test_where_nothing_runs_there_is_nothing_to_measure(tmp_path: Path) -> None:
    assert memory_mib(str(tmp_path)) is None
