"""Custom servers, `github/<owner>/<repo>`."""

from __future__ import annotations

import pytest

from app.catalog import OptionError, PackageRun, is_custom_key, render_custom
from app.catalog.custom import START_TIMEOUT_S

URL = "https://git.example/"


@pytest.mark.parametrize(("run", "install"), [("runCmd", "installCmd"), ("run_cmd", "install_cmd")])
def test_both_spellings_give_the_same_run(run: str, install: str) -> None:
    options: dict[str, object] = {run: "npx -y .", install: "npm install", "envs": {"A": "x", "N": 5, "B": True}}
    rendered = render_custom("github/acme/tool.js", options, github_url=URL)
    assert (rendered.key, rendered.start_timeout_s) == ("github/acme/tool.js", START_TIMEOUT_S)
    assert rendered.run == PackageRun(
        command=("/bin/bash", "-l", "-c", "npx -y ."),
        env={"A": "x", "N": "5", "B": "true"},
        placement="workspace",
        repository="https://git.example/acme/tool.js",
        install="npm install",
    )


def test_only_the_command_is_needed() -> None:
    run = render_custom("github/acme/tool", {"runCmd": "./run", "installCmd": None}, github_url=URL).run
    assert isinstance(run, PackageRun)
    assert (run.install, run.env) == (None, {})


@pytest.mark.parametrize(
    "key",
    [
        "github/acme",
        "github/acme/",
        "github//tool",
        "github/acme/..",
        "github/acme/tool/deeper",
        "github/-acme/tool",
        "github/acme/to ol",
        "github/acme/tool\n",
        "github/ac.me/tool",
        "github/acme/tool?x=1",
    ],
)
def test_a_name_that_is_no_repository_is_refused(key: str) -> None:
    assert is_custom_key(key)
    with pytest.raises(OptionError, match="is named github/<owner>/<repo>"):
        render_custom(key, {"runCmd": "x"}, github_url=URL)


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({}, "runCmd", "is required"),
        ({"runCmd": "  "}, "runCmd", "expected a shell line"),
        ({"runCmd": ["s3cret"]}, "runCmd", "expected a shell line"),
        ({"runCmd": "x", "installCmd": 5}, "installCmd", "expected a shell line"),
        ({"runCmd": "x", "run_cmd": "x"}, "run_cmd", "is given twice, in both spellings"),
        ({"runCommand": "x"}, None, "unknown option 'runCommand'. Did you mean runCmd?"),
        ({"zzz": "x"}, None, "It takes: runCmd, installCmd, envs."),
        ({"runCmd": "x", "envs": ["A=s3cret"]}, "envs", "expected an object"),
        ({"runCmd": "x", "envs": {"A-B": "s3cret"}}, "envs", "letters, digits and _"),
        ({"runCmd": "x", "envs": {"A": ["s3cret"]}}, "envs.A", "expected a string"),
        ({"runCmd": "x", "envs": {"A": "s3cret\0"}}, "envs.A", "holds a NUL character"),
        ({"runCmd": "x", "envs": {"A": "\ud800"}}, "envs.A", "surrogate"),
        ({"runCmd": "\ud800"}, "runCmd", "surrogate"),
    ],
)
def test_an_unusable_option_is_refused_without_its_value(
    options: dict[str, object], field: str | None, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        render_custom("github/acme/tool", options, github_url=URL)
    assert caught.value.field == field
    assert message in caught.value.message
    assert "s3cret" not in caught.value.message


def test_a_catalog_key_is_not_custom() -> None:
    assert not is_custom_key("githubOfficial")
