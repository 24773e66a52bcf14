"""The page of what works, from what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from app.settings import ROOT
from tests.e2e.compatibility.features import CLIENTS, COMMAND_LINE, COMMANDS, FEATURES, Feature, Mode, cases

PAGE: Path = ROOT / "docs" / "compatibility.md"

INTRODUCTION = """# Compatibility with E2B

Written by `make compatibility` from the results of its tests; not to be changed by hand. Each cell is one test in
`tests/e2e/compatibility`: a script as it is written for E2B's cloud, run with only its environment changed.

| | |
|---|---|
| **works** | does what it does at E2B |
| no, with a number | does not work here, and is tested not to; the reason is below the tables |
| – | this version of the SDK does not have it |
"""

HEADINGS = {
    Mode.PLAIN: "## Plain HTTP\n\n"
    "`E2B_API_KEY`, `E2B_API_URL` and `E2B_SANDBOX_URL`; for volumes `E2B_VOLUME_API_URL` too.",
    Mode.DOMAIN: "## A domain with TLS\n\n"
    "`E2B_API_KEY`, `E2B_DOMAIN`, and `SSL_CERT_FILE` or `NODE_EXTRA_CA_CERTS`; see"
    " [operations](operations.md#a-domain-for-sandboxes). What the SDKs build `https://` addresses for needs it.",
}

Observed = Mapping[str, bool]
"""Case, or key of a command, as a string -> whether it worked."""


def expected() -> Observed:
    """What is observed where every test passes."""
    features = {str(case): case.feature.limit is None for case in cases()}
    return features | {name_of(command): True for command in COMMANDS}


def name_of(command: Feature) -> str:
    return f"{command.key}-command-line"


def render(observed: Observed) -> str:
    limited = [feature for feature in FEATURES if feature.limit is not None]
    parts = [INTRODUCTION]
    for mode in Mode:
        parts.append(HEADINGS[mode])
        parts.append(_table(mode, limited, observed))
    rows = [f"| {command.title} | {_cell(observed, name_of(command), '')} |" for command in COMMANDS]
    parts.append(f"## The command line\n\n| `{COMMAND_LINE}` | |\n|---|---|\n" + "\n".join(rows))
    reasons = [f"{number}. {feature.limit.reason}" for number, feature in enumerate(limited, 1) if feature.limit]
    parts.append("## What does not work, and why\n\n" + "\n".join(reasons))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(mode: Mode, limited: list[Feature], observed: Observed) -> str:
    by_name = {(case.mode, case.client.key, case.feature.key): str(case) for case in cases()}
    lines = [f"| | {' | '.join(client.title for client in CLIENTS)} |", "|---" * (len(CLIENTS) + 1) + "|"]
    for feature in FEATURES:
        if mode in feature.modes:
            no = f"no ({limited.index(feature) + 1})" if feature in limited else ""
            names = (by_name.get((mode, client.key, feature.key)) for client in CLIENTS)
            cells = ("–" if name is None else _cell(observed, name, no) for name in names)
            lines.append(f"| {feature.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(observed: Observed, name: str, limited: str) -> str:
    if name not in observed:
        return "not tried"
    return "works" if observed[name] else limited or "**fails**"
