"""Runs the official conformance suite (an npm package) and reads what it found."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests import npm
from tests.conformance.processes import REPOSITORY

HOME = Path(__file__).parent
PACKAGE = HOME / "node_modules" / "@modelcontextprotocol" / "conformance"

LEGACY = "2025-11-25"
MODERN = "2026-07-28"
REVISIONS = (LEGACY, MODERN)

RUN_S = 150
SCENARIO_S = 15

_RESULT_FOLDER = re.compile(r"(server-)?(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


class SuiteError(AssertionError):
    """The suite cannot be installed or did not run to its end."""


@dataclass(frozen=True)
class Check:
    id: str
    name: str
    status: str
    """SUCCESS, FAILURE, WARNING, SKIPPED or INFO."""
    message: str


@dataclass(frozen=True)
class Report:
    checks: Mapping[str, tuple[Check, ...]]
    """By scenario. A scenario passes when none of its checks is a FAILURE."""

    def failed(self) -> frozenset[str]:
        return frozenset(
            scenario for scenario, checks in self.checks.items() if any(each.status == "FAILURE" for each in checks)
        )

    def explain(self, scenarios: Iterable[str]) -> str:
        """One line for each check of these scenarios that did not succeed."""
        return "\n".join(
            f"{scenario}: {check.status} {check.id} ({check.name}): {check.message}"
            for scenario in sorted(scenarios)
            for check in self.checks.get(scenario, ())
            if check.status not in ("SUCCESS", "INFO")
        )

    def lost_against(self, baseline: "Report") -> dict[str, str]:
        """What succeeded in `baseline` and does not here: from `<scenario>:<check id>` to what happened instead.

        Finer than scenarios, because a check that is skipped or only warns does not fail its scenario. A check that
        occurs several times counts as its worst occurrence.
        """
        lost = {}
        for scenario, checks in baseline.checks.items():
            here = _worst_by_identity(self.checks.get(scenario, ()))
            for identity, before in _worst_by_identity(checks).items():
                now = here.get(identity)
                if before.status == "SUCCESS" and (now is None or now.status not in ("SUCCESS", "INFO")):
                    lost[f"{scenario}:{before.id}"] = f"{now.status}: {now.message}" if now else "was not reached"
        return lost


def install() -> None:
    """Installs what package-lock.json pins into node_modules, unless that is what is there already.

    Raises: AssertionError when there is no npm or it fails.
    """
    stamp = HOME / "node_modules" / ".installed-lock-sha256"
    wanted = hashlib.sha256((HOME / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if shutil.which("npm") is None:
        raise SuiteError("The conformance suite is an npm package: install Node.js with npm, then run this again.")
    npm.install(HOME)
    stamp.write_text(wanted)


def scored_server_scenarios(revision: str) -> list[str]:
    """What a server has to pass at this revision, as the suite froze it."""
    requirements = yaml.safe_load((PACKAGE / "requirements" / f"{revision}.yaml").read_text())
    return list(requirements["server"])


def run_server_scenarios(url: str, revision: str, *, results: Path, token: str | None = None) -> Report:
    """All server scenarios of one revision, scored or not, one after the other. `token` is sent as bearer.

    Raises: SuiteError when the suite does not finish within RUN_S.
    """
    options = ["server", "--url", url, "--requirements", revision, "--timeout", str(SCENARIO_S * 1000)]
    _run(options, results, token)
    return _read(results)


def run_client_scenario(command: str, scenario: str, revision: str, *, results: Path) -> Report:
    """Runs `command` with the address of the suite's mock server appended; the report has the one scenario.

    Raises: SuiteError as `run_server_scenarios`, and when the command fails although every check passes.
    """
    options = ["client", "--command", command, "--scenario", scenario, "--spec-version", revision]
    exit_code = _run([*options, "--timeout", str(3 * SCENARIO_S * 1000)], results, token=None)
    report = _read(results)
    if exit_code != 0 and not report.failed():
        stderr = "\n".join(file.read_text() for file in results.glob("*/stderr.txt"))
        raise SuiteError(f"{command} failed or took too long:\n{stderr[-3000:]}")
    return report


def node() -> Path:
    return HOME / "node_modules" / ".bin" / "node"


def _run(options: list[str], results: Path, token: str | None) -> int:
    """The exit code, which for server scenarios only repeats what the checks say."""
    results.mkdir(parents=True)
    with_token = ["--import", str(HOME / "bearer.mjs")] if token else []
    env = {"CONFORMANCE_SUITE": str(PACKAGE), "CONFORMANCE_BEARER_TOKEN": token} if token else {}
    command = [str(node()), *with_token, str(PACKAGE / "dist" / "index.js"), *options, "--output-dir", str(results)]
    log = results / "suite.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            raise SuiteError(f"The suite did not finish within {RUN_S} s:\n{log.read_text()[-3000:]}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read(results: Path) -> Report:
    checks = {}
    for file in sorted(results.glob("*/checks.json")):
        folder = _RESULT_FOLDER.fullmatch(file.parent.name)
        assert folder is not None, f"unexpected name of a result folder: {file.parent.name}"
        checks[folder["scenario"]] = tuple(
            Check(each["id"], each["name"], each["status"], each.get("errorMessage") or each["description"])
            for each in json.loads(file.read_text())
        )
    if not checks:
        raise SuiteError(f"The suite reported nothing:\n{(results / 'suite.log').read_text()[-3000:]}")
    return Report(checks)


_BADNESS = {"FAILURE": 4, "WARNING": 3, "SKIPPED": 2, "INFO": 1, "SUCCESS": 0}


def _worst_by_identity(checks: Iterable[Check]) -> dict[tuple[str, str], Check]:
    worst: dict[tuple[str, str], Check] = {}
    for check in checks:
        identity = (check.id, check.name)
        if identity not in worst or _BADNESS[check.status] > _BADNESS[worst[identity].status]:
            worst[identity] = check
    return worst
