"""What the scripts try, with which clients and in which ways, and what is known not to work. The page and the tests
are made from these tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    PLAIN = "plain"
    """`E2B_API_URL` and `E2B_SANDBOX_URL`: HTTP on one port."""
    DOMAIN = "domain"
    """Only `E2B_DOMAIN` and the authority's certificate: TLS, with a name for each sandbox."""


@dataclass(frozen=True, slots=True)
class Limit:
    reason: str
    """For the reader of the page."""
    says: str
    """Part of what the script fails with."""


@dataclass(frozen=True, slots=True)
class Feature:
    key: str
    """Name of the function in the scripts."""
    title: str
    modes: tuple[Mode, ...] = (Mode.PLAIN,)
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Client:
    key: str
    title: str
    script: str
    lacks: frozenset[str] = frozenset()
    """Keys of features that this version of the SDK does not have."""


@dataclass(frozen=True, slots=True)
class Case:
    mode: Mode
    client: Client
    feature: Feature

    def __str__(self) -> str:
        return f"{self.feature.key}-{self.client.key}-{self.mode}"


BOTH = (Mode.PLAIN, Mode.DOMAIN)
DOMAIN = (Mode.DOMAIN,)

FEATURES = (
    Feature("life", "Create, info, list by metadata and state, connect, kill; environment and metadata"),
    Feature("timeouts", "Time-outs: set, never shortened by connect, enforced"),
    Feature("pages", "Lists in pages"),
    Feature("commands", "Commands: output, errors, users, input, background, list, connect, kill", BOTH),
    Feature("files", "Files: text, bytes, streams, many at once, info, list, rename, remove", BOTH),
    Feature("terminal", "Terminals (PTY), with resize"),
    Feature("watch", "Watching a directory tree"),
    Feature("git", "Git in the sandbox: init, status, commit, branch, clone"),
    Feature("pause", "Pause and resume with memory and processes"),
    Feature("pause_files", "Pause of the files only, with another boot id after it"),
    Feature("auto_pause", "Pause at the time-out, and resume by traffic"),
    Feature("snapshots", "Snapshots: names, list, create from them, delete"),
    Feature("fork", "Forks, with environment, metadata and files"),
    Feature("metrics", "Metrics"),
    Feature("signed_urls", "Signed URLs for upload and download, with expiry", BOTH),
    Feature("network", "Network rules: deny, allow by host name, change while it runs; no internet access"),
    Feature("template", "Template build: copy, run, variables, directory, start and ready command, failing step"),
    Feature("template_tags", "Template names and tags"),
    Feature("volumes", "Volumes: content from outside, mounted in sandboxes"),
    Feature("secrets", "Secrets: create, update, list, delete"),
    Feature("hosts", "`get_host()`: services on any port, on 127.0.0.1 too", DOMAIN),
    Feature("private_hosts", "Private ports with a traffic token", DOMAIN),
    Feature("mcp", "`mcp=`: a tool call at `get_mcp_url()`, the token again after connect", DOMAIN),
    Feature("mcp_template", "`add_mcp_server()`: a template with MCP servers", DOMAIN),
    Feature(
        "fork_memory",
        "Processes and memory in forks and snapshots",
        limit=Limit(
            "Docker keeps the file system of a container, not its processes: a fork or a snapshot is like a boot.",
            "CommandExit",
        ),
    ),
    Feature(
        "header_rules",
        "`network.rules`: headers added to requests that leave the sandbox",
        limit=Limit(
            "It takes a proxy that opens TLS with an authority every program in the sandbox trusts. Credentials of MCP"
            " servers stay outside the workspace without it.",
            "network.rules is not supported",
        ),
    ),
    Feature(
        "egress_proxy",
        "`network.egress_proxy`: a SOCKS proxy of one's own",
        limit=Limit("Not built. It is refused, not ignored.", "network.egressProxy is not supported"),
    ),
    Feature(
        "https_ports",
        "`network.https_ports`: services that speak TLS themselves",
        limit=Limit("Not built. It is refused, not ignored.", "network.httpsPorts is not supported"),
    ),
    Feature(
        "identity",
        "`iam`: workload identity tokens",
        limit=Limit("There is no issuer that a cloud provider would trust. It is refused.", "iam is not supported"),
    ),
)

CLIENTS = (
    Client("python", "Python 2.63.0", "script.py"),
    Client("python-async", "Python 2.63.0, async", "script_async.py"),
    Client("python-older", "Python 2.45.1", "script.py", frozenset({"https_ports"})),
    Client("javascript", "JavaScript 2.51.0, Node 22", "script.mjs"),
)

COMMANDS = (
    Feature("create", "`sandbox create --detach`, `list`, `info`, `kill`"),
    Feature("execute", "`sandbox exec`: output, exit code, user, variables"),
    Feature("connect", "`sandbox connect`: a terminal"),
    Feature("logs", "`sandbox logs`, `metrics`"),
    Feature("pause", "`sandbox pause`, `resume`"),
    Feature("snapshot", "`sandbox snapshot create`, `list`, `delete`"),
    Feature("template", "`template create` from a Dockerfile, `list`, `publish`, `unpublish`, `delete`"),
)
"""What is tried with `@e2b/cli`."""

COMMAND_LINE = "@e2b/cli 2.19.0"


def cases() -> Iterator[Case]:
    """In the order in which the scripts are asked to do them."""
    for mode in Mode:
        for client in CLIENTS:
            for feature in FEATURES:
                if mode in feature.modes and feature.key not in client.lacks:
                    yield Case(mode, client, feature)
