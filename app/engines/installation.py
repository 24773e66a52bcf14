"""Gets a Docker Engine onto a machine that has none: Debian and Ubuntu, as root. Elsewhere it says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from app.errors import EngineUnavailable

_START_DEADLINE_S = 60.0
_INSTALL_DEADLINE_S = 600.0
_POLL_S = 0.5


def install_engine(say: Callable[[str], None], *, answers: Callable[[], bool], log_file: Path) -> None:
    """Install `docker.io` if there is no `dockerd`, start it, and wait until `answers()`.

    Blocks for minutes at worst. Raises: EngineUnavailable with what to do by hand.
    """
    if os.geteuid() != 0 or not _is_debian():
        raise EngineUnavailable(
            "No Docker Engine answers. Install it (https://docs.docker.com/engine/install/), make sure that"
            " `docker info` works for this user, or set DOCKER_HOST, and run the command again."
        )
    if shutil.which("dockerd") is None:
        say("No Docker Engine on this machine: installing Debian's package docker.io …")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "docker.io", "iptables"]):
            _run(command, environment)
    say(f"Starting the Docker Engine …{'' if _has_systemd() else f' (dockerd, log in {log_file})'}")
    if _has_systemd():
        _run(["systemctl", "start", "docker"], dict(os.environ))
    else:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            # Detached on purpose: sandboxes and the engine outlive the control plane.
            subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + _START_DEADLINE_S
    while not answers():
        if time.monotonic() > deadline:
            raise EngineUnavailable(f"dockerd did not answer within {_START_DEADLINE_S:g} s; see {log_file}.")
        time.sleep(_POLL_S)


def _run(command: list[str], environment: dict[str, str]) -> None:
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_INSTALL_DEADLINE_S)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise EngineUnavailable(f"`{' '.join(command)}` failed: {' / '.join(last)}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineUnavailable(f"`{' '.join(command)}` took longer than {error.timeout:g} s.") from error


def _is_debian() -> bool:
    release = Path("/etc/os-release")
    words = release.read_text() if release.exists() else ""
    return any(f"{key}={name}" in words for key in ("ID", "ID_LIKE") for name in ("debian", "ubuntu"))


def _has_systemd() -> bool:
    """As sd_booted(3) decides."""
    return Path("/run/systemd/system").is_dir()
