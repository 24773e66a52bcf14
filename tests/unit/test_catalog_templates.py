"""Template semantics of Docker's MCP catalog, and where they are deliberately better here."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from app.catalog.templates import TemplateError, evaluate, evaluate_items, evaluate_text, variables_in

CONTEXT: dict[str, JsonValue] = {
    "srv": {
        "url": "https://example.com",
        "jira": {"url": "https://jira"},
        "port": 8080,
        "ratio": 0.5,
        "on": True,
        "paths": ["/a", "/b"],
        "none": [],
        "empty": "",
        "windows": "C:\\data\\in",
        "dollar": "$TOKEN",
    }
}
VARIABLES = {"TOKEN": "s3cret", "ORG": "acme"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{srv.url}}", "https://example.com"),
        ("{{ srv.jira.url }}", "https://jira"),
        ("{{srv.unknown.deep}}", None),
        ("{{srv.paths}}", ["/a", "/b"]),
        ("{{srv.url|volume}}", "https://example.com:https://example.com"),
        ("{{srv.paths|volume}}", ["/a:/a", "/b:/b"]),
        ("{{srv.empty|volume}}", ""),
        ("{{srv.windows|volume}}", "C:\\data\\in:/C/data/in"),
        ("{{srv.windows|volume-target}}", "/C/data/in"),
        ("{{srv.paths|volume-target|into}}", ["/a", "/b"]),
        ("{{srv.port|into}}", ["8080"]),
        ("{{srv.empty|into}}", [""]),
        ("{{srv.unknown|into}}", []),
        ("{{srv.paths|first}}", "/a"),
        ("{{srv.paths|last}}", "/b"),
        ("{{srv.none|first}}", ""),
        ("{{srv.empty|or:fallback}}", "fallback"),
        ("{{srv.url|or:fallback}}", "https://example.com"),
        ("{{srv.none|or:[a,b]}}", ["a", "b"]),
        ("{{srv.empty|or:[a,b]}}", "[a,b]"),
        ("{{srv.unknown|or:[]|volume|into}}", []),
        ("{{srv.url|mount_as:/data:ro}}", "https://example.com:/data:ro"),
        ("{{srv.paths|mount_as:/data}}", "/a:/data"),
        ("{{srv.empty|mount_as:/data}}", ""),
    ],
)
def test_a_single_reference_keeps_the_type_of_its_value(text: str, value: JsonValue) -> None:
    assert evaluate(text, CONTEXT, {}) == value


def test_braces_outside_a_template_stay() -> None:
    assert evaluate_text('{"url": "{{srv.url}}", "n": {}}', CONTEXT, {}) == '{"url": "https://example.com", "n": {}}'


def test_numbers_and_booleans_become_text_as_json_writes_them() -> None:
    items = evaluate_items(["--port={{srv.port}}", "{{srv.port}}", "{{srv.ratio}}", "{{srv.on}}"], CONTEXT, {})
    assert items == ("--port=8080", "8080", "0.5", "true")


def test_a_list_is_spliced_into_a_list_field_and_comma_separated_inside_text() -> None:
    assert evaluate_items(["x", "{{srv.paths|into}}", "y"], CONTEXT, {}) == ("x", "/a", "/b", "y")
    assert evaluate_text("in {{srv.paths}}", CONTEXT, {}) == "in /a,/b"


def test_an_unknown_path_is_empty_text() -> None:
    assert evaluate_items(["--x={{srv.unknown}}", "{{srv.unknown}}"], CONTEXT, {}) == ("--x=", "")


def test_both_spellings_of_a_variable_expand_and_an_unknown_one_is_empty() -> None:
    text = '{"Authorization": "Bearer $TOKEN", "org": "${ORG}", "x": "$UNKNOWN", "price": "5$"}'
    expected = '{"Authorization": "Bearer s3cret", "org": "acme", "x": "", "price": "5$"}'
    assert evaluate_text(text, {}, VARIABLES) == expected


def test_a_value_from_a_caller_is_never_expanded_again() -> None:
    assert evaluate_text("{{srv.dollar}} $ORG", CONTEXT, VARIABLES) == "$TOKEN acme"
    assert evaluate_text("{{srv.dollar}}", {"srv": {"dollar": "{{srv.url}}"}}, VARIABLES) == "{{srv.url}}"


def test_the_variables_of_a_text_are_those_outside_its_templates() -> None:
    assert list(variables_in("$A ${B} {{srv.url|or:$C}} $")) == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{srv.url|upper}}", "'upper'"),
        ("{{srv.url|or}}", "or takes an argument"),
        ("{{srv.url|into:x}}", "into takes no argument"),
        ("{{}}", "no path"),
        ("{{srv..url}}", "no path"),
    ],
)
def test_a_broken_template_is_an_error_that_quotes_it(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        evaluate(text, CONTEXT, {})
    assert message in str(caught.value)
    assert text in str(caught.value)
