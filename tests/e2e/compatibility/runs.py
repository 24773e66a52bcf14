"""Runs a script with one client in one mode: one process, which does feature after feature."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.compatibility.features import Case, Client, Mode
from tests.e2e.compatibility.names import resolving
from tests.e2e.installation import Installation
from tests.locks import held

HERE = Path(__file__).parent
OLDER = HERE / "requirements-2.45.1.lock"
DOMAIN = "sandboxes.test"


def older_python() -> str:
    """An environment with the older SDK, kept between runs for as long as its lock file stays the same."""
    digest = hashlib.sha256(OLDER.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"sandgate-tests-e2b-{digest}"
    python, finished = folder / "bin" / "python", folder / "finished"
    folder.mkdir(exist_ok=True)
    with held(folder):
        if not finished.exists():
            venv.create(folder, with_pip=True, clear=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(OLDER)]
            subprocess.run(install, check=True, timeout=280)
            finished.touch()
    return str(python)


@dataclass
class Run:
    process: subprocess.Popen[str]
    errors: Path
    outcomes: dict[str, str] = field(default_factory=dict)

    def outcome(self, feature: str) -> str:
        """What it failed with, or nothing."""
        assert self.process.stdout is not None
        while feature not in self.outcomes:
            line = self.process.stdout.readline()
            assert line, f"the script ended before {feature}:\n{self.errors.read_text()[-3000:]}"
            told = json.loads(line)
            self.outcomes[told["feature"]] = told["failure"]
        return self.outcomes[feature]

    def end(self) -> None:
        self.process.terminate()
        with self.process:
            self.process.wait(timeout=30)


class Runs:
    """All clients of a mode are started together, when the first of them is asked for."""

    def __init__(self, gate: Installation, cases: Sequence[Case], *, node: str, folder: Path) -> None:
        self._gate = gate
        self._cases = cases
        self._node = node
        self._folder = folder
        self._runs: dict[tuple[Mode, str], Run] = {}

    def outcome(self, case: Case) -> str:
        if (case.mode, case.client.key) not in self._runs:
            for client in dict.fromkeys(each.client for each in self._cases if each.mode is case.mode):
                self._runs[case.mode, client.key] = self._start(case.mode, client)
        return self._runs[case.mode, case.client.key].outcome(case.feature.key)

    def _start(self, mode: Mode, client: Client) -> Run:
        features = [each.feature.key for each in self._cases if (each.mode, each.client) == (mode, client)]
        command = [self._interpreter(client), str(HERE / "scripts" / client.script), *features]
        folder = self._folder / f"{mode}-{client.key}"
        folder.mkdir()
        if mode is Mode.DOMAIN:
            command = resolving(command, folder)
        errors = folder / "stderr"
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                command, env=self._environment(mode), stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        return Run(process, errors)

    def _interpreter(self, client: Client) -> str:
        if client.script.endswith(".mjs"):
            return self._node
        return older_python() if client.key == "python-older" else sys.executable

    def _environment(self, mode: Mode) -> Mapping[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
        if mode is Mode.PLAIN:
            return {**inherited, **self._gate.sdk_environment, "E2B_VOLUME_API_URL": self._gate.url}
        authority = str(self._gate.home / "ca" / "ca.pem")
        return {
            **inherited,
            "E2B_API_KEY": self._gate.key,
            "E2B_DOMAIN": self._gate.settings["SANDGATE_SANDBOX_DOMAIN"],
            "SSL_CERT_FILE": authority,
            "NODE_EXTRA_CA_CERTS": authority,
        }

    def end(self) -> None:
        for run in self._runs.values():
            run.end()
