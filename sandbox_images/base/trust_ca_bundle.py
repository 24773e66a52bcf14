"""Add the certificates of a PEM bundle that Debian does not trust already to the system store.

Each goes into a file of its own: the hashed directory that `update-ca-certificates` makes holds only such files.
"""

import hashlib
import re
import ssl
import subprocess
import sys
from pathlib import Path

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
SYSTEM_STORE = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_CERTIFICATES = Path("/usr/local/share/ca-certificates")


def certificates(bundle: Path) -> dict[bytes, str]:
    """DER encoding -> PEM text of each certificate in `bundle`."""
    text = bundle.read_text(encoding="utf-8", errors="replace")
    return {ssl.PEM_cert_to_DER_cert(pem): pem for pem in CERTIFICATE.findall(text)}


def main() -> None:
    trusted = certificates(SYSTEM_STORE)
    added = {der: pem for der, pem in certificates(Path(sys.argv[1])).items() if der not in trusted}
    for der, pem in added.items():
        name = f"sandgate-{hashlib.sha256(der).hexdigest()[:16]}.crt"
        (LOCAL_CERTIFICATES / name).write_text(pem + "\n", encoding="ascii")
    subprocess.run(["update-ca-certificates"], check=True)
    sys.stdout.write(f"{len(added)} certificates added to those Debian trusts\n")


main()
