"""Tools that are a container per call: which of them are run, and what a call of one runs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml

from app.catalog import CallError, CallVolume, CatalogError, ContainerToolsRun, ServerDefinition, plan_call, render
from app.catalog.catalog import parse_manifest
from app.catalog.container_tools import ContainerTool
from app.catalog.errors import OptionError
from app.catalog.formats import read_document
from app.catalog.objections import notes_of, objections_of, state_of

ARGS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "args": {"type": "array", "items": {"type": "string"}},
        "path": {"type": "string"},
        "level": {"type": "integer", "default": 3},
        "deep": {"type": "object", "properties": {"er": {"type": "string"}}},
    },
}
BY_DOCKER = """
registry:
  curl:
    title: Curl
    type: poci
    tools:
      - name: curl
        description: Run a curl command.
        parameters: {type: object, properties: {args: {type: array, items: {type: string}}}, required: [args]}
        container: {image: alpine/curl, command: ["{{args|into}}"]}
  docker:
    title: Docker
    type: poci
    tools:
      - name: docker
        parameters: {type: object, properties: {args: {type: array, items: {type: string}}}, required: [args]}
        container:
          image: "docker:cli"
          command: ["{{args|into}}"]
          volumes: ["/var/run/docker.sock:/var/run/docker.sock"]
  media:
    title: Media
    type: poci
    tools:
      - name: exists
        parameters: {type: object, properties: {path: {type: string}}, required: [path]}
        container: {image: busybox, command: [test, -f, "{{path}}"], volumes: ["{{path}}:{{path}}"]}
      - name: host
        container: {image: busybox, volumes: ["/etc:/etc"]}
      - name: any
        parameters: {type: object, properties: {image: {type: string}}}
        container: {image: "{{image}}", command: ["{{typo}}"]}
      - name: careless
        parameters: {type: object, properties: {}}
        container: {image: busybox, command: ["{{typo}}"]}
"""


def tool(*command: str, parameters: dict[str, Any] | None = None, **container: Any) -> ContainerTool:
    return ContainerTool.model_validate(
        {
            "name": "t",
            "parameters": ARGS if parameters is None else parameters,
            "container": {"image": "acme/t:1", "command": command, **container},
        }
    )


def command_of(text: str, **arguments: Any) -> tuple[str, ...] | None:
    return plan_call(tool(text), arguments).command


@pytest.fixture(scope="module")
def docker() -> dict[str, ServerDefinition]:
    catalog = read_document(BY_DOCKER.encode(), origin="catalog.yaml")
    assert catalog.refused == ()
    return {definition.name: definition for definition in catalog.definitions}


def manifest(**changes: Any) -> ServerDefinition:
    one = {"name": "say", "parameters": ARGS, "container": {"image": "acme/say:1", "command": ["{{args|into}}"]}}
    document = {"name": "talk", "title": "Talk", "type": "poci", "tools": [one | changes.pop("tool", {})], **changes}
    return parse_manifest(yaml.safe_dump(document), origin="talk.yaml")


# -- what is run -----------------------------------------------------------------------------------------------------


def test_a_list_becomes_as_many_arguments_and_everything_else_one() -> None:
    hostile = ["-x", "a b", "$(id)", "`id`", "; rm -rf /", "--", "{{path}}", "$HOME", "\u00e9\n", ""]
    assert command_of("{{args|into}}", args=hostile) == tuple(hostile)
    assert command_of("{{path}}", path="-rf /; $(id)") == ("-rf /; $(id)",)
    assert command_of("{{path|into}}", path="one two") == ("one two",)


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("--path={{path}}", {"path": "/p"}, ("--path=/p",)),
        ("--path={{path}}", {}, ("--path=",)),
        ("{{path}}", {}, ("",)),
        ("{{args|into}}", {}, None),
        ("{{args|into}}", {"args": []}, None),
        ("{{level}}", {}, ("3",)),
        ("{{level}}", {"level": 9}, ("9",)),
        ("{{deep.er}}", {"deep": {"er": "x"}}, ("x",)),
        ("echo $HOME ${args}", {}, ("echo $HOME ${args}",)),
        ('{"json": "{{path}}"}', {"path": "x"}, ('{"json": "x"}',)),
    ],
)
def test_templates_take_the_arguments_of_the_call_and_no_variable(
    text: str, arguments: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    assert command_of(text, **arguments) == expected


def test_a_tool_can_let_the_call_say_as_whom_it_runs() -> None:
    assert plan_call(tool(user="{{path}}"), {"path": "1000:1000"}).user == "1000:1000"
    assert plan_call(tool(user="{{path}}"), {}).user is None


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("{{path}}:{{path}}", "/data/in", CallVolume("/data/in", "/data/in", is_read_only=False)),
        ("{{path}}:{{path}}", "/data/../in/", CallVolume("/in", "/in", is_read_only=False)),
        ("{{path}}:/work:ro", "/data", CallVolume("/data", "/work", is_read_only=True)),
        ("{{path|volume|into}}", "/data", CallVolume("/data", "/data", is_read_only=False)),
        ("{{path|mount_as:/work:ro}}", "/data", CallVolume("/data", "/work", is_read_only=True)),
    ],
)
def test_a_path_of_the_caller_is_wanted_as_a_volume(text: str, path: str, expected: CallVolume) -> None:
    assert plan_call(tool(volumes=[text]), {"path": path}).volumes == (expected,)


def test_a_path_that_was_not_given_is_no_volume() -> None:
    assert plan_call(tool(volumes=["{{path|volume|into}}"]), {}).volumes == ()


@pytest.mark.parametrize(
    ("path", "why"),
    [("/data:/etc", "without ':'"), ("data", "must be an absolute path"), ("/a\0b", "NUL"), ("", "absolute path")],
)
def test_a_path_that_is_none_is_refused(path: str, why: str) -> None:
    with pytest.raises(CallError, match=why):
        plan_call(tool(volumes=["{{path}}:{{path}}"]), {"path": path})


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"args": "x"}, r'break its input schema. \$.args: "x" is not of type "array"'),
        ({"args": ["x", 1]}, r'\$.args\[1\]: 1 is not of type "string"'),
        ({"level": "3"}, r'\$.level: "3" is not of type "integer"'),
        ({"args": ["a\0b"]}, "NUL character"),
        ({"args": ["\ud800"]}, "half of a surrogate pair"),
        ({"args": ["x" * 131_072]}, "An argument of 131072 bytes is longer than the 131071"),
        ({"args": ["x" * 131_071] * 9}, "longer than 1048576 bytes in all"),
        ([], "must be an object"),
        ("text", "must be an object"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_with_path_and_reason(arguments: Any, why: str) -> None:
    with pytest.raises(CallError, match=why):
        plan_call(tool("{{args|into}}"), arguments)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(CallError, match=r'\$: "args" is a required property'):
        plan_call(tool("{{args|into}}", parameters={**ARGS, "required": ["args"]}), {})


def test_a_reason_repeats_no_more_than_the_beginning_of_an_argument() -> None:
    with pytest.raises(CallError) as caught:
        plan_call(tool(), {"args": "x" * 100_000, "path": 1, "level": "l", "deep": 1})
    assert len(str(caught.value)) < 1000


def test_of_a_hundred_thousand_faults_three_are_told() -> None:
    with pytest.raises(CallError) as caught:
        plan_call(tool(), {"args": [1] * 100_000})
    assert str(caught.value).count("is not of type") == 3


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(?=a)(.*)*(.*)*z$"])
def test_no_pattern_holds_the_process(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(CallError, match="does not match|acktrack"):
        plan_call(tool(parameters={"properties": {"path": {"pattern": pattern}}}), {"path": "a" * 10_000 + "!"})
    assert time.monotonic() - began < 10


def test_arguments_that_nest_without_end_are_refused() -> None:
    schema = {"properties": {"path": {"$ref": "#"}}}
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"path": nested}
    with pytest.raises(CallError, match="nests too deep"):
        plan_call(tool(parameters=schema), nested)


# -- definitions -----------------------------------------------------------------------------------------------------


def test_a_server_of_container_tools_is_rendered_with_its_credential_for_every_container() -> None:
    definition = manifest(
        secrets=[{"name": "talk.key", "env": "TALK_KEY"}],
        env=[{"name": "MODE", "value": "{{talk.mode}}"}],
        config={"properties": {"mode": {"type": "string", "default": "loud"}}},
        limits={"memoryMib": 64},
        disableNetwork=True,
    )
    run = render(definition, "talk", {"key": "secret"}).run
    assert isinstance(run, ContainerToolsRun)
    assert run.tools == definition.tools
    assert (run.env, run.limits.memory_mib, run.disable_network) == ({"TALK_KEY": "secret", "MODE": "loud"}, 64, True)
    assert "secret" not in repr(run)


def test_a_schema_without_a_type_is_one_of_an_object() -> None:
    assert tool(parameters={"properties": {}}).input_schema == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tool": {"container": {"image": "{{path}}"}}}, "tools.say.container.image: the arguments of a call would"),
        ({"tool": {"container": {"image": "a", "command": ["{{x|shout}}"]}}}, "tools.say.container.command: .*'shout'"),
        ({"tool": {"container": {"image": "a", "command": ["{{typo}}"]}}}, "{{typo}} names no parameter"),
        ({"tool": {"container": {"image": "a", "volumes": ["/etc:/etc"]}}}, "/etc:/etc is storage that nothing in a"),
        ({"tool": {"container": {"image": "a", "volumes": ["kept:/kept"]}}}, "kept:/kept is storage that nothing"),
        ({"tool": {"container": {"image": "a", "volumes": ["/run/docker.sock:{{path}}"]}}}, "hand over the container"),
        ({"tool": {"parameters": {"type": "array"}}}, "parameters: it is no JSON Schema of an object: its type is"),
        (
            {"tool": {"parameters": {"properties": {"a": {"type": "text"}}}}},
            r'\$.properties.a.type: "text" is not valid',
        ),
        (
            {"tool": {"parameters": {"properties": {"a": {"$ref": "https://schema.example/x"}}}}},
            "https://schema.example/x is not in it",
        ),
        ({"tool": {"parameters": {"properties": {"a": {"pattern": "("}}}}}, r"\$.properties.a.pattern"),
        ({"tool": {"timeoutS": 0}}, "timeoutS"),
        ({"tools": []}, "tools: a definition of type poci has tools"),
        ({"tools": [{"name": "a", "container": {"image": "a"}}] * 2}, "tools: a is defined twice"),
        ({"command": ["x"]}, "command: a definition of type poci has none of its own"),
    ],
)
def test_a_definition_of_ones_own_that_cannot_be_run_is_no_definition(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CatalogError, match=problem):
        manifest(**changes)


def test_dockers_tools_that_hand_over_the_engine_are_refused_and_harmless_ones_run(
    docker: dict[str, ServerDefinition],
) -> None:
    assert {name: state_of(definition) for name, definition in docker.items()} == {
        "curl": "available",
        "docker": "refused",
        "media": "available",
    }
    (objection,) = objections_of(docker["docker"])
    assert objection.field == "tools.docker.container.volumes"
    with pytest.raises(OptionError, match="would hand over the container engine, and with it the host. Nobody can"):
        render(docker["docker"], "docker", {})
    run = render(docker["curl"], "curl", {}).run
    assert isinstance(run, ContainerToolsRun)
    assert plan_call(run.tools[0], {"args": ["-sS", "http://x"]}).command == ("-sS", "http://x")


def test_a_tool_that_is_not_run_is_left_out_and_a_note_says_why(docker: dict[str, ServerDefinition]) -> None:
    run = render(docker["media"], "media", {}).run
    assert isinstance(run, ContainerToolsRun)
    assert [one.name for one in run.tools] == ["exists", "careless"]
    notes = notes_of(docker["media"])
    assert notes[0] == "tools.careless.container.command: {{typo}} names none of its parameters, so it is always empty."
    assert [note.partition(":")[2].strip()[:26] for note in notes[1:3]] == [
        "tools.host.container.volum",
        "tools.any.container.image:",
    ]
    assert notes[3:] == ("exists: sees files in the sandbox's volumes only; create it with volumeMounts.",)
