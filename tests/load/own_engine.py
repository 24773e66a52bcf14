"""A Docker Engine of a test's own, beside the machine's, so that it can be ended and killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import docker
import psutil
from docker.errors import DockerException

from tests.e2e.installation import wait_until

_START_WITHIN_S = 60
_END_WITHIN_S = 60.0
_BRIDGE_ADDRESS = "198.51.100.253/30"
"""Of a bridge that nothing is put on: an address for documentation (RFC 5737), away from those of `engine.internet`."""
_KEPT_FOR_THE_MACHINES_ENGINE = ("198.18.0.0/16", "198.19.0.0/17")
"""The first three quarters of where `app.engines.network_guard` looks for a subnet."""


class OwnEngine:
    """`dockerd` with everything of its own: data, sockets, containers. It takes root.

    It shares the host's network and leaves the packet filter alone, which belongs to the machine's engine. So pods have
    addresses on this host and no way into the internet.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is short enough for the path of a unix socket, and on a disk that overlayfs can stand on."""
        self.url = f"unix://{folder}/engine.sock"
        self.log = folder / "log"
        self._folder = folder
        self._bridge = f"sgt-{folder.name[-8:]}"
        # containerd may be the machine's, where names are all that keeps two engines apart.
        namespace = folder.name
        self._command = [
            "dockerd",
            f"--host={self.url}",
            f"--data-root={folder}/data",
            f"--exec-root={folder}/run",
            f"--pidfile={folder}/pid",
            f"--containerd-namespace={namespace}",
            f"--containerd-plugins-namespace={namespace}-plugins",
            # Not "none", with which an engine removes docker0, whosever that is.
            f"--bridge={self._bridge}",
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool = False) -> None:
        """Returns once it answers. With `live_restore` containers go on without it, until it is back."""
        is_new = not Path("/sys/class/net", self._bridge).exists()
        if is_new:
            subprocess.run(["ip", "link", "add", "name", self._bridge, "type", "bridge"], check=True)
            subprocess.run(["ip", "address", "add", _BRIDGE_ADDRESS, "dev", self._bridge], check=True)
        command = [*self._command, f"--live-restore={str(live_restore).lower()}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, self._last_words, within_s=_START_WITHIN_S)
        if is_new:
            self._keep_away()

    def end(self, number: signal.Signals) -> None:
        """Returns once it is gone. At SIGTERM it stops what runs first, unless that is restored live."""
        if self._process is not None:
            # Its containerd ends with it, a moment later; an engine that starts before that takes it for its own.
            containerd = psutil.Process(self._process.pid).children()
            self._process.send_signal(number)
            self._process.wait(timeout=_END_WITHIN_S)
            self._process = None
            psutil.wait_procs(containerd, timeout=_END_WITHIN_S)

    def load(self, images: Sequence[str]) -> None:
        """Take over images of the machine's engine."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
            subprocess.run(["docker", "load", "--quiet"], stdin=saved.stdout, env=self.environment, check=True)
        assert saved.returncode == 0

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.url}

    def remove(self) -> None:
        """End it and all that runs on it, and remove what it holds."""
        if self._process is None:
            self.start()
        client = docker.APIClient(self.url)
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True, v=True)
        client.close()
        self.end(signal.SIGTERM)
        left = [process for process in psutil.process_iter(["cmdline"]) if self._is_of_it(process)]
        for process in left:
            with suppress(psutil.NoSuchProcess):  # a shim ends with its container
                process.kill()
        psutil.wait_procs(left, timeout=_END_WITHIN_S)
        for mount in sorted(_mounts_below(self._folder), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)
        subprocess.run(["ip", "link", "delete", self._bridge], check=True)
        shutil.rmtree(self._folder)

    def _keep_away(self) -> None:
        """Neither engine knows what the other is making, and two networks of one subnet on a host cut each other off.

        A network that is nothing but configuration has its subnets taken, and no bridge and no route on the host.
        """
        subnets = [f"--subnet={subnet}" for subnet in _KEPT_FOR_THE_MACHINES_ENGINE]
        command = ["docker", "network", "create", "--config-only", *subnets, "of-the-machines-engine"]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def _is_of_it(self, process: psutil.Process) -> bool:
        """Its containerd, and the shims that hold its containers."""
        return any(self._folder.name in part for part in process.info["cmdline"] or ())

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._last_words()
        with socket.socket(socket.AF_UNIX) as probe:
            # First, because the SDK does not close a socket that could not connect.
            if probe.connect_ex(self.url.removeprefix("unix://")) != 0:
                return False
        try:
            docker.APIClient(self.url, timeout=_START_WITHIN_S).close()  # it asks for the version
        except DockerException:
            return False
        return True

    def _last_words(self) -> str:
        return self.log.read_text()[-3000:]


def _mounts_below(folder: Path) -> list[str]:
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [mount for mount in mounts if mount.startswith(f"{folder}/")]
