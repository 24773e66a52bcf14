"""From steps to what containers do."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidRequest
from app.templates.models import Runs
from app.templates.planning import (
    BuildRequest,
    PlannedStep,
    Step,
    check_image_name,
    check_request,
    failure_text,
    image_alias,
    layer_key,
    plan_steps,
)

HASH = "a" * 64


def step(kind: str, *args: str, **more: Any) -> Step:
    return Step(kind=kind, args=args, **more)


def plan(*steps: Step, image_env: dict[str, str] | None = None) -> list[PlannedStep]:
    return plan_steps(steps, Runs(), image_env or {})


def test_run_uses_the_user_directory_and_environment_so_far() -> None:
    planned = plan(step("ENV", "A", "1"), step("WORKDIR", "/app"), step("USER", "bob"), step("RUN", "make"))
    assert planned[-1].action == {"do": "run", "command": "make", "user": "bob", "workdir": "/app", "env": {"A": "1"}}
    assert planned[-1].after == Runs(user="bob", workdir="/app", envs={"A": "1"})


def test_a_user_of_one_run_is_not_kept() -> None:
    planned = plan(step("RUN", "apt-get update", "root"), step("RUN", "id"))
    assert [p.action["user"] for p in planned if p.action] == ["root", "user"]


def test_an_empty_user_of_a_run_is_the_current_one() -> None:
    (planned,) = plan(step("RUN", "id", ""))
    assert planned.action is not None
    assert planned.action["user"] == "user"


@pytest.mark.parametrize(("name", "meant"), [("bob", "bob"), ("bob:staff", "bob"), ("0", "root"), ("0:0", "root")])
def test_the_user_is_known_by_name(name: str, meant: str) -> None:
    (planned,) = plan(step("USER", name))
    assert planned.after.user == meant
    assert planned.action == {"do": "user", "name": meant}


def test_steps_are_numbered_from_one() -> None:
    assert [p.name for p in plan(step("RUN", "a"), step("RUN", "b"))] == ["1", "2"]


@pytest.mark.parametrize(("path", "meant"), [("/app", "/app"), ("src", "/home/user/src"), ("..", "/home")])
def test_a_relative_directory_is_below_the_current_one(path: str, meant: str) -> None:
    (planned,) = plan(step("WORKDIR", path))
    assert planned.after.workdir == meant
    assert planned.action == {"do": "workdir", "path": meant, "user": "user"}


def test_variables_are_expanded_with_those_of_the_image_and_earlier_ones() -> None:
    planned = plan(step("ENV", "A", "x$B-${A}-$C", "D", "$A"), image_env={"B": "b", "A": "a"})
    assert planned[0].after.envs == {"A": "xb-a-", "D": "xb-a-"}
    assert planned[0].action is None


def test_a_path_is_put_where_login_shells_keep_it() -> None:
    (planned,) = plan(step("ENV", "PATH", "/opt/bin:$PATH"), image_env={"PATH": "/bin"})
    assert planned.action == {"do": "path", "value": "/opt/bin:/bin"}


def test_copy_knows_owner_and_mode_if_they_are_given() -> None:
    bare, full = plan(
        step("COPY", "a", "b", "", "", files_hash=HASH), step("COPY", "a", "b", "root", "0755", files_hash=HASH)
    )
    assert bare.action is not None
    assert full.action is not None
    assert (bare.action["owner"], bare.action["mode"], bare.files_hash) == ("", "", HASH)
    assert (full.action["owner"], full.action["mode"]) == ("root", "0755")


def test_pulling_servers_needs_no_container() -> None:
    (planned,) = plan(step("RUN", "mcp-gateway pull exa github/acme/tool", "root"))
    assert planned.servers == ("exa", "github/acme/tool")
    assert planned.action is None


@pytest.mark.parametrize("command", ["mcp-gateway pull", "mcp-gateway pull exa && rm x", "mcp-gateway pull $(id)"])
def test_anything_else_with_the_gateway_command_runs_as_it_is(command: str) -> None:
    (planned,) = plan(step("RUN", command))
    assert planned.servers == ()
    assert planned.action is not None


def test_what_goes_into_a_layer_names_it() -> None:
    keys = {
        layer_key("base", {"do": "run", "command": "a"}),
        layer_key("other", {"do": "run", "command": "a"}),
        layer_key("base", {"do": "run", "command": "b"}),
        layer_key("base", {"do": "run", "command": "a"}, HASH),
    }
    assert len(keys) == 4
    assert layer_key("base", {"a": 1, "b": 2}) == layer_key("base", {"b": 2, "a": 1})


def test_a_failed_command_is_told_with_its_exit_code() -> None:
    (planned,) = plan(step("RUN", "make"))
    assert failure_text(planned, 2, "make: *** no rule") == (
        "failed to run command 'make': command failed: exit status 2"
    )


def test_an_unknown_user_is_told_in_the_words_of_the_contract() -> None:
    (planned,) = plan(step("RUN", "whoami", "root123"))
    assert failure_text(planned, 125, "unauthenticated: invalid username: 'root123'") == (
        "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'"
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (BuildRequest(), "fromImage and fromTemplate"),
        (BuildRequest(from_image="a", from_template="b"), "fromImage and fromTemplate"),
        (BuildRequest(from_image="a", steps=(step("FROM", "x"),)), "steps.1"),
        (BuildRequest(from_image="a", steps=(step("RUN", "x"), step("RUN"))), "steps.2"),
        (BuildRequest(from_image="a", steps=(step("ENV", "A"),)), "steps.1"),
        (BuildRequest(from_image="a", steps=(step("COPY", "a", "b"),)), "filesHash"),
        (BuildRequest(from_image="a", steps=(step("COPY", "a", "b", files_hash="../x"),)), "filesHash"),
        (BuildRequest(from_image="a", steps=(step("COPY", "a", "b", "", "rwx", files_hash=HASH),)), "octal"),
        (BuildRequest(from_image="a", steps=(step("ENV", "A=B", "1"),)), "variable"),
        (BuildRequest(from_image="a", steps=(step("ENV", "", "1"),)), "variable"),
        (BuildRequest(from_image="a", steps=(step("RUN", "x\0y"),)), "NUL"),
        (BuildRequest(from_image="a", steps=(step("RUN", "x"),) * 501), "500"),
    ],
)
def test_a_request_that_cannot_be_built_is_refused_by_field(request_: BuildRequest, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        check_request(request_)


@pytest.mark.parametrize(
    "name", ["ubuntu", "ubuntu:22.04", "cafe/img", "ghcr.io/a/b:1", "registry.corp:5000/a/b", f"a@sha256:{'0' * 64}"]
)
def test_images_of_named_registries_may_be_used(name: str) -> None:
    check_image_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "-x", "sandgate/gateway:1", "sandgate-ab12/template:x", "127.0.0.1:5000/a", "10.0.0.1/a"),
        *("localhost/a", "localhost:5000/a", "169.254.169.254:80/a", "2130706433:5000/a", "0x7f000001:80/a"),
    ],
)
def test_other_peoples_images_and_registries_without_a_name_may_not(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_image_name(name)


def test_an_alias_holds_with_and_without_the_tag_latest() -> None:
    aliases = {"acme/base": "local:1", "ubuntu:22.04": "local:2"}
    assert image_alias("acme/base:latest", aliases) == "local:1"
    assert image_alias("acme/base", aliases) == "local:1"
    assert image_alias("ubuntu:22.04", aliases) == "local:2"
    assert image_alias("ubuntu", aliases) is None
