"""Runs in the workspace image: gathers the agent and all it stands on into a tree that runs in any Linux image.

    /sandgate-runtime/opt/sandgate/
        agent/      as in the workspace, but its `python` is a script that starts the one below
        runtime/    Python, its standard library and PROGRAMS, with the loader and the libraries of this image
        provision/  what `provision.py` puts into other places

Programs of the image at hand have another C library, or an older one, or none. So ours bring their own and are started
through its loader (ld.so(8)): nothing of the foreign image is used but its kernel and /bin/sh.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

TREE = Path("/sandgate-runtime/opt/sandgate")
AGENT = Path("/opt/sandgate/agent")
RUNTIME = Path("/opt/sandgate/runtime")
"""Where the runtime lies in the image it is copied into."""
PROGRAMS = ("bash", "setsid", "ss", "pgrep", "curl")
"""What the agent runs, and what the ready commands of E2B's SDKs run: `wait_for_port`, `_process` and `_url`."""
LOADED_LATER = ("libgcc_s.so.1",)
"""What the C library opens by name when a thread is cancelled; no program says that it needs it."""
UNUSED = (
    *("config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tkinter"),
    *("turtledemo", "venv"),
)
"""Parts of the standard library that the agent never imports."""


def launcher(program: str, name: str) -> str:
    loader = f"{RUNTIME}/lib/ld.so --library-path {RUNTIME}/lib"
    return f'#!/bin/sh\nexec {loader} --argv0 {name} {RUNTIME}/bin/{program} "$@"\n'


def write_program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def libraries(files: Iterable[Path]) -> Iterator[Path]:
    """Everything that the loader of this image would load for `files`, itself included; some come repeatedly."""
    for file in files:
        listing = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
        for found in re.finditer(r"(?:=> |^\s*)(/\S+) \(0x", listing, re.MULTILINE):
            yield Path(found[1])


def find_later_loaded(beside: Path) -> Iterator[Path]:
    for name in LOADED_LATER:
        if (beside / name).exists():
            yield beside / name


def main() -> None:
    interpreter = Path(sysconfig.get_config_var("BINDIR")) / "python3"
    standard_library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        AGENT, TREE / "agent", symlinks=True, ignore=lambda folder, _: {"bin"} if folder == str(AGENT) else ()
    )
    (TREE / "agent/pyvenv.cfg").write_text(f"home = {RUNTIME}/bin\ninclude-system-site-packages = false\n")
    write_program(TREE / "agent/bin/python", launcher("python3", str(AGENT / "bin/python")))

    (TREE / "runtime/bin").mkdir(parents=True)
    shutil.copy(interpreter.resolve(), TREE / "runtime/bin/python3")
    for name in PROGRAMS:
        shutil.copy(shutil.which(name), TREE / "runtime/bin" / name)
        write_program(TREE / "provision/programs" / name, launcher(name, name))
    library = TREE / "runtime/lib" / standard_library.name
    shutil.copytree(standard_library, library, symlinks=True, ignore=shutil.ignore_patterns(*UNUSED))

    gathered = {path.name: path for path in libraries([*(TREE / "runtime/bin").iterdir(), *TREE.rglob("*.so")])}
    c_library = next(path for name, path in gathered.items() if name.startswith("libc.so"))
    gathered |= {path.name: path for path in find_later_loaded(c_library.parent)}
    for name, path in gathered.items():
        shutil.copy(path.resolve(), TREE / "runtime/lib" / ("ld.so" if name.startswith("ld-") else name))

    provision = TREE / "provision"
    shutil.copy("/usr/local/bin/mcp-gateway", provision)
    shutil.copy("/etc/sudoers.d/sandgate", provision / "sudoers")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", provision)
    shutil.copytree("/usr/local/share/ca-certificates", provision / "ca-certificates")
    for path in (TREE, *TREE.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)


main()
