"""Runs in a foreign image once the runtime is in it: makes it what the SDKs expect of a sandbox.

Prints what it cannot give and goes on: a sandbox without sudo is still of use.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import accounts

PROVISION = Path("/opt/sandgate/provision")
STORE = Path("/etc/ssl/certs/ca-certificates.crt")
OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")
OTHER_STORES = (Path("/etc/pki/tls/certs/ca-bundle.crt"), Path("/etc/ssl/ca-bundle.pem"))
"""Of Fedora and its like, and of SUSE."""
COMMON_PATH = {f"{above}/{name}" for above in ("/usr/local", "/usr", "") for name in ("sbin", "bin")}
READY_PROGRAMS = ("ss", "pgrep", "curl")
"""What `wait_for_port`, `wait_for_process` and `wait_for_url` of E2B's SDKs call."""
INSTALL_S = 300
WITHOUT_SUDO = "commands of `user` cannot become root"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

INSTALLERS = {
    "apt-get": "apt-get $tls update -qq && DEBIAN_FRONTEND=noninteractive apt-get $tls install -qq --yes"
    " --no-install-recommends sudo && rm -rf /var/lib/apt/lists/*",
    "apk": "apk add --no-cache --quiet sudo",
    "dnf": "dnf install --assumeyes --quiet sudo && dnf clean all --quiet",
    "microdnf": "microdnf install --assumeyes sudo && microdnf clean all",
    "yum": "yum install --assumeyes --quiet sudo",
    "zypper": "zypper --non-interactive --quiet install sudo",
    "pacman": "pacman --sync --refresh --noconfirm --quiet sudo",
}
"""Package manager -> shell line that installs sudo."""


def main() -> None:
    shutil.rmtree(Path(__file__).parent)  # it must stay in no image
    add_programs()
    trust_certificates()
    add_sudo()
    user = accounts.make("user")
    if shutil.which("sudo"):
        rules = Path("/etc/sudoers.d/sandgate")
        rules.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        rules.write_text((PROVISION / "sudoers").read_text())
        rules.chmod(0o440)
    Path("/etc/mcp-gateway").mkdir(exist_ok=True)
    for folder in ("/code", "/usr/local/bin"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for folder in ("/code", "/usr/local"):
        accounts.own(folder, user.pw_uid, user.pw_gid)
    shutil.copy(PROVISION / "mcp-gateway", "/usr/local/bin/mcp-gateway")
    keep_path()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def add_programs() -> None:
    """What the agent and ready commands run and the image lacks. `setsid` has to know --ctty."""
    if not Path("/bin/bash").exists():
        shutil.copy(shutil.which("bash") or PROVISION / "programs/bash", "/bin/bash")
    lacking = [name for name in READY_PROGRAMS if shutil.which(name) is None]
    if subprocess.run("setsid --help 2>&1 | grep -q -e --ctty", shell=True, check=False).returncode != 0:
        lacking.append("setsid")
    Path("/usr/local/bin").mkdir(parents=True, exist_ok=True)
    for name in lacking:
        shutil.copy(PROVISION / "programs" / name, f"/usr/local/bin/{name}")


def trust_certificates() -> None:
    """Give an image without certificates those of the workspace; add to others only the operator's own."""
    extra = {file.name: file.read_text() for file in sorted((PROVISION / "ca-certificates").glob("*.crt"))}
    STORE.parent.mkdir(parents=True, exist_ok=True)
    if not STORE.exists():
        source = next((store for store in OTHER_STORES if store.exists()), PROVISION / "ca-certificates.crt")
        shutil.copy(source, STORE)
    OWN_CERTIFICATES.mkdir(parents=True, exist_ok=True)
    trusted = set(_CERTIFICATE.findall(STORE.read_text()))
    with STORE.open("a") as store:
        for name, text in extra.items():
            (OWN_CERTIFICATES / name).write_text(text)  # for the day the store is made anew
            if not trusted.issuperset(_CERTIFICATE.findall(text)):
                store.write(text)


def add_sudo() -> None:
    if shutil.which("sudo"):
        return
    manager = next((name for name in INSTALLERS if shutil.which(name)), None)
    if manager is None:
        say(f"sudo is not there and cannot be installed: {WITHOUT_SUDO}")
        return
    say(f"installing sudo with {manager}")
    # apt brings no certificates of its own and may not find the store of an image that has just got one.
    environment = {**os.environ, "tls": f"-o Acquire::https::CAInfo={STORE}", "SSL_CERT_FILE": str(STORE)}
    try:
        done = subprocess.run(
            INSTALLERS[manager],
            shell=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say(f"sudo was not installed within {INSTALL_S} s: {WITHOUT_SUDO}")
        return
    if done.returncode != 0:
        say(f"{done.stdout[-2000:].rstrip()}\nsudo could not be installed: {WITHOUT_SUDO}")


def keep_path() -> None:
    """Login shells, which run all commands, set PATH anew: bring the image's own back if it is a special one."""
    path = os.environ.get("PATH", "")
    if set(path.split(":")) <= COMMON_PATH:
        return
    Path("/etc/profile.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/profile.d/sandgate-path.sh").write_text(f"export PATH='{path}'\n")


if __name__ == "__main__":
    main()
