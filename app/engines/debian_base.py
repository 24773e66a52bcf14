"""What the base image starts from: an image from a registry, or Debian made here where no registry gives it."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from app.engines.docker_client import docker_errors_mapped
from app.errors import EngineError

SUITE = "trixie"
MADE_HERE = f"sandgate/debian:{SUITE}"
"""The image made by debootstrap. It stays on the engine, so it is made once."""
REGISTRY_SILENCE_S = 20.0
"""How long a registry may say nothing before it counts as unreachable."""
DEBOOTSTRAP_S = 1800.0

_NOT_PACKED = (
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "var/log/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "usr/share/man/*",
)
"""What Debian's own slim images leave out."""

Report = Callable[[str], None]


def debian_base(
    client: docker.DockerClient, wanted: str, report: Report, *, registry_silence_s: float = REGISTRY_SILENCE_S
) -> str:
    """An image on the engine to start from: `wanted` if it is present or can be pulled, else one made by debootstrap.

    Raises: EngineError with what to install when neither can be had, EngineUnavailable.
    """
    if is_present(client, wanted):
        return wanted
    reason = _pull(client, wanted, report, registry_silence_s)
    if reason is None:
        return wanted
    report(f"{wanted} cannot be pulled: {reason}")
    if not is_present(client, MADE_HERE):
        _make(client, why=f"{wanted} is not on the engine and cannot be pulled ({reason})", report=report)
    report(f"using {MADE_HERE} instead of {wanted}")
    return MADE_HERE


def is_present(client: docker.DockerClient, image: str) -> bool:
    with docker_errors_mapped(f"look for image {image}"):
        try:
            client.images.get(image)
        except ImageNotFound:
            return False
        return True


def _pull(client: docker.DockerClient, image: str, report: Report, silence_s: float) -> str | None:
    """Why the image could not be pulled, or None if it was.

    The engine alone decides how long it waits for a registry, so a thread that can be left behind reads its answers.
    """
    answers: queue.Queue[str | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for event in client.api.pull(image, stream=True, decode=True):
                if "error" in event:
                    raise DockerException(event["error"])
                answers.put(f"pulling {image}: {event.get('id', '')} {event.get('status', '')}")
            answers.put(None)
        except (DockerException, RequestException, HTTPError) as error:
            answers.put(error)

    threading.Thread(target=read, name=f"pull {image}", daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=silence_s)
        except queue.Empty:
            return f"its registry said nothing for {silence_s:g} s"
        if answer is None:
            return None
        if isinstance(answer, BaseException):
            return str(getattr(answer, "explanation", None) or answer)
        report(answer)


def _make(client: docker.DockerClient, *, why: str, report: Report) -> None:
    """Make a minimal Debian with debootstrap and import it as an image."""
    _ensure_debootstrap(why, report)
    architecture = _architecture(client)
    with _scratch_folder() as root:
        report(f"making Debian {SUITE} with debootstrap")
        _run(
            ["debootstrap", f"--arch={architecture}", "--variant=minbase", "--force-check-gpg", SUITE, str(root)],
            report,
        )
        _add_update_suites(root / "etc/apt/sources.list")
        for step in (["update"], ["upgrade", "--yes"]):
            _run(["chroot", str(root), "apt-get", *step], report)
        _run(["find", str(root / "usr/share/doc"), "-type", "f", "!", "-name", "copyright", "-delete"], report)
        report(f"importing it as {MADE_HERE}")
        name, _, tag = MADE_HERE.partition(":")
        excludes = [f"--exclude=./{pattern}" for pattern in _NOT_PACKED]
        pack = ["tar", "--create", "--numeric-owner", *excludes, "--directory", str(root), "."]
        with (
            docker_errors_mapped(f"import image {MADE_HERE}"),
            subprocess.Popen(pack, stdout=subprocess.PIPE) as packing,
        ):
            client.api.import_image_from_stream(packing.stdout, repository=name, tag=tag, changes=['CMD ["bash"]'])
    if not is_present(client, MADE_HERE):
        raise EngineError(f"The engine took the file system of {MADE_HERE} but made no image of it.")


def _ensure_debootstrap(why: str, report: Report) -> None:
    """Raises: EngineError with what to do where debootstrap cannot run."""
    ways = "load the image into the engine (docker load), or name another Debian trixie image in SANDGATE_BASE_IMAGE"
    if os.geteuid() != 0:
        raise EngineError(
            f"{why}. Making Debian here instead takes debootstrap and root: `apt-get install debootstrap "
            f"debian-archive-keyring`, then build the images once as root. Or {ways}."
        )
    if _debootstrap_is_usable():
        return
    if shutil.which("apt-get") is None:
        raise EngineError(
            f"{why}. Making Debian here instead takes debootstrap and Debian's archive keyring: install both. "
            f"Or {ways}."
        )
    report("installing debootstrap with apt-get")
    _run(["apt-get", "update"], report)
    _run(
        ["apt-get", "install", "--yes", "--no-install-recommends", "debootstrap", "debian-archive-keyring"],
        report,
    )


def _debootstrap_is_usable() -> bool:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return shutil.which("debootstrap", path=_PATH) is not None and keyring.is_file()


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""debootstrap and chroot live in sbin, which is not on everybody's PATH."""


def _architecture(client: docker.DockerClient) -> str:
    """Debian's name of the engine's architecture; Docker uses Go's names, which differ for some."""
    with docker_errors_mapped("ask the engine for its architecture"):
        name = str(client.version()["Arch"])
    return {"arm": "armhf", "386": "i386", "ppc64le": "ppc64el"}.get(name, name)


def _add_update_suites(sources: Path) -> None:
    """debootstrap names the release alone; Debian's own images have its updates and security fixes too."""
    mirror = sources.read_text().split()[1]
    lines = [f"deb {mirror} {SUITE} main", f"deb {mirror} {SUITE}-updates main"]
    if mirror.rstrip("/").endswith("/debian"):
        lines.append(f"deb {mirror.rstrip('/')}-security {SUITE}-security main")
    sources.write_text("\n".join(lines) + "\n")


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for a root file system. What may still be mounted in it after an interruption is not descended into."""
    folder = tempfile.mkdtemp(prefix="sandgate-debian-")
    try:
        yield Path(folder)
    finally:
        subprocess.run(["rm", "--recursive", "--force", "--one-file-system", folder], check=False)


def _run(command: list[str], report: Report) -> None:
    """Run a program, reporting its lines. Raises: EngineError with the last of them when it fails or takes too long."""
    last: deque[str] = deque(maxlen=20)
    environment = {**os.environ, "PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:

        def end() -> None:
            """TERM to the whole group, so that debootstrap unmounts what it has mounted."""
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)

        bound = threading.Timer(DEBOOTSTRAP_S, end)
        bound.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line.rstrip())
                report(line.strip())
        except BaseException:
            end()
            raise
        finally:
            bound.cancel()
    if process.returncode != 0:
        output = "\n".join(last)
        raise EngineError(f"{command[0]} failed with exit code {process.returncode}:\n{output}")
