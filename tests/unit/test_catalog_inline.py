"""Servers given inline: what is run or reached, and what is refused."""

from __future__ import annotations

import pytest

from app.catalog import OptionError, PackageRun, RemoteRun, is_inline, render_inline


def test_a_command_runs_in_the_workspace() -> None:
    options = {"type": "stdio", "command": "npx", "args": ["-y", "thing", ""], "env": {"A": "b"}, "cwd": "/tmp"}
    assert is_inline(options)
    assert render_inline("mine", options).run == PackageRun(
        command=("npx", "-y", "thing", ""), env={"A": "b"}, cwd="/tmp", placement="workspace"
    )


@pytest.mark.parametrize(
    ("kind", "transport"), [(None, "streamable-http"), ("http", "streamable-http"), ("sse", "sse")]
)
def test_a_url_is_reached_by_the_gateway(kind: str | None, transport: str) -> None:
    options = {"url": "https://mcp.example/x", "headers": {"Authorization": "Bearer t"}, "type": kind}
    run = render_inline("mine", options).run
    assert isinstance(run, RemoteRun)
    assert (run.url, run.headers, run.transport_type) == (options["url"], options["headers"], transport)
    assert not run.allow_private


@pytest.mark.parametrize(
    ("key", "options", "words"),
    [
        ("a b", {"command": "x"}, "name"),
        ("mine", {"command": ""}, "command"),
        ("mine", {"command": ["x"]}, "command"),
        ("mine", {"command": "x", "args": "y"}, "args"),
        ("mine", {"command": "x", "args": [1]}, "args"),
        ("mine", {"command": "x", "env": {"1": "y"}}, "env"),
        ("mine", {"command": "x", "headers": {}}, "headers"),
        ("mine", {"command": "x", "type": "http"}, "stdio"),
        ("mine", {"url": "ftp://x"}, "https://"),
        ("mine", {"url": "https://x y"}, "https://"),
        ("mine", {"url": "https://x", "command": "y"}, "command"),
        ("mine", {"url": "https://x", "type": "stdio"}, "http or sse"),
        ("mine", {"url": "https://x", "headers": {"a b": "c"}}, "headers"),
        ("mine", {"url": "https://x", "headers": {"A": "sesame\n"}}, "headers.A"),
    ],
)
def test_what_cannot_be_run_is_refused_by_field(key: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words) as refusal:
        render_inline(key, options)
    assert "sesame" not in str(refusal.value)
