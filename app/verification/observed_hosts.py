"""From what a server reached out for while it was tried to the `allowHosts` of its manifest.

What is found is only what it asks for before a tool is called, so hosts are added and none is taken away. Hosts that
exist to hear how a server is used are left out: nobody who allows a server its service means those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.catalog import CatalogError, ServerDefinition
from app.catalog.catalog import parse_manifest
from app.catalog.stand_ins import CREDENTIAL
from app.errors import SandgateError

_TELEMETRY_SERVICES = (
    "amplitude.com",
    "applicationinsights.azure.com",
    "bugsnag.com",
    "datadoghq.com",
    "datadoghq.eu",
    "google-analytics.com",
    "googletagmanager.com",
    "honeycomb.io",
    "mixpanel.com",
    "newrelic.com",
    "posthog.com",
    "reo.dev",
    "rollbar.com",
    "scarf.sh",
    "segment.com",
    "segment.io",
    "sentry.io",
    "statsig.com",
)
_TELEMETRY_LABEL = re.compile(r"(^|[.-])(analytics|metrics|stats|telemetry|tracking)([.-]|$)")
_NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
_NOBODYS = re.compile(r"(^|\.)(example(\.(com|net|org))?|internal|invalid|local|localhost|test)$|^\d+(\.\d+){3}$")
"""Names of examples and of the machine's own network (RFC 2606, RFC 6762, metadata services), and plain addresses."""


class ManifestEditError(SandgateError):
    """A manifest is not written as it would have to be to be changed."""


@dataclass(frozen=True, slots=True)
class ObservedHosts:
    new: tuple[str, ...]
    """`host:port` that `allowHosts` lacks."""
    telemetry: tuple[str, ...]
    """Left out."""


def sort_hosts(definition: ServerDefinition, observed: Iterable[str]) -> ObservedHosts:
    """`observed` is `Verification.hosts`; what was only looked up, and what was made up, does not count."""
    new: list[str] = []
    telemetry: list[str] = []
    for target in observed:
        host, colon, _ = target.rpartition(":")
        if (
            not colon
            or not _NAME.fullmatch(host)
            or _NOBODYS.search(host)
            or CREDENTIAL in host
            or _is_allowed(target, definition.allow_hosts)
        ):
            continue
        (telemetry if _is_telemetry(host) else new).append(target)
    return ObservedHosts(tuple(new), tuple(telemetry))


def with_allowed_hosts(manifest: str, hosts: Sequence[str]) -> str:
    """The text of a manifest with `allowHosts` on one line, everything else as it was. Raises: ManifestEditError."""
    changed = _edited(manifest if manifest.endswith("\n") else f"{manifest}\n", hosts)
    try:
        before, after = (parse_manifest(text, origin="the manifest") for text in (manifest, changed))
    except CatalogError as error:
        raise ManifestEditError(f"`allowHosts` was not written: {'; '.join(error.problems)}") from error
    if after != before.model_copy(update={"allow_hosts": tuple(hosts)}):
        raise ManifestEditError("`allowHosts` was not written, as the manifest would come to mean something else.")
    return changed


def _edited(manifest: str, hosts: Iterable[str]) -> str:
    """Raises: ManifestEditError."""
    line = f"allowHosts: [{', '.join(_quoted(host) for host in hosts)}]\n"
    written = re.compile(r"^allowHosts:.*\n", re.MULTILINE)
    if (found := written.search(manifest)) is not None:
        if not re.search(r"\[.*\]\s*$", found[0]):
            raise ManifestEditError(f"`allowHosts` is not on one line there. Write: {line.strip()}")
        return written.sub(lambda _: line, manifest, count=1)
    # Before the facts that the program does not act on, as in the manifests that are shipped.
    after = re.search(r"^(category|tags|homepage|license|verified):", manifest, re.MULTILINE)
    place = after.start() if after else len(manifest)
    return manifest[:place] + line + manifest[place:]


def _is_telemetry(host: str) -> bool:
    return host.endswith(_TELEMETRY_SERVICES) or _TELEMETRY_LABEL.search(host) is not None


def _is_allowed(target: str, allowed: Iterable[str]) -> bool:
    host, _, port = target.rpartition(":")
    for entry in allowed:
        name, _, its_port = entry.rpartition(":")
        if its_port == port and (host == name or (name.startswith("*.") and host.endswith(name[1:]))):
            return True
    return False


def _quoted(host: str) -> str:
    """A `*` begins an alias in YAML."""
    return f'"{host}"' if host.startswith("*") else host
