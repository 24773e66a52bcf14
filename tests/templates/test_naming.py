"""How templates and tags may be named."""

from __future__ import annotations

import pytest

from app.errors import InvalidRequest
from app.templates.naming import Reference, check_tag, parse_new_name, parse_reference, wanted_tags


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("web", Reference("web")),
        ("web:v1.0", Reference("web", "v1.0")),
        ("team_red/web:v1", Reference("web", "v1", "team_red")),
        (" Web:V1 ", Reference("web", "v1")),
        ("0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55", Reference("0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55")),
    ],
)
def test_a_reference_has_a_name_and_may_have_namespace_and_tag(text: str, meant: Reference) -> None:
    assert parse_reference(text) == meant


@pytest.mark.parametrize("text", ["", ":v1", "web:", "we b", "web.app", "a/b/c", "/web", "web:a:b", "wéb", "x" * 129])
def test_what_names_no_template_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text)


@pytest.mark.parametrize("tag", ["", "a:b", "a b", "0b8e1c1e-6a4f-4a70-9d27-0d7f3c2b4a55", "x" * 129])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidRequest):
        check_tag(tag)


def test_a_long_text_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference("!" * 10_000)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["base", "mcp-gateway", "BASE:v1"])
def test_the_names_of_built_in_templates_are_taken(name: str) -> None:
    with pytest.raises(InvalidRequest, match="comes with Sandgate"):
        parse_new_name(name)


def test_a_build_without_tags_gets_the_default_one() -> None:
    assert wanted_tags(Reference("web"), []) == ("default",)
    assert wanted_tags(Reference("web", "v1"), []) == ("v1",)
    assert wanted_tags(Reference("web", "v1"), ["latest", "v1"]) == ("v1", "latest")
