"""Resource URIs in the sandbox: readable, rewritten only where two servers use the same one, and back again."""

import pytest
from sandgate_gateway.rewriting import rewrite_result, rewrite_ui_resource
from sandgate_gateway.uri_templates import MAX_EXPRESSIONS, MAX_URI, UriTemplate
from sandgate_gateway.uris import UriMap, with_server


def test_a_unique_uri_stays_the_servers_own() -> None:
    uris = UriMap({"a": ["memo:x"], "b": ["memo:y"]}, {})
    assert uris.is_identity
    assert uris.expose("a", "memo:x") == "memo:x"
    assert uris.resolve("memo:y") == [("b", "memo:y")]


@pytest.mark.parametrize(
    ("uri", "exposed"),
    [
        ("test://data/1", "test://a/data/1"),
        ("file:///etc/hosts", "file://a//etc/hosts"),
        ("memo:x", "memo:a/x"),
        ("ui://panel", "ui://a/panel"),
    ],
)
def test_a_colliding_uri_carries_the_servers_name_and_leads_back(uri: str, exposed: str) -> None:
    uris = UriMap({"a": [uri], "b": [uri]}, {})
    assert uris.expose("a", uri) == exposed
    assert uris.resolve(exposed) == [("a", uri)]
    assert uris.resolve(uris.expose("b", uri)) == [("b", uri)]


def test_a_server_with_a_slash_in_its_name_leads_back() -> None:
    uris = UriMap({"github/o/r": ["memo:x"], "b": ["memo:x"]}, {})
    exposed = uris.expose("github/o/r", "memo:x")
    assert exposed == "memo:github%2Fo%2Fr/x"
    assert uris.resolve(exposed) == [("github/o/r", "memo:x")]


def test_web_addresses_are_never_rewritten() -> None:
    uris = UriMap({"a": ["https://x.example/1"], "b": ["https://x.example/1"]}, {})
    assert uris.expose("b", "https://x.example/1") == "https://x.example/1"
    assert uris.resolve("https://x.example/1") == [("a", "https://x.example/1"), ("b", "https://x.example/1")]


def test_a_unique_uri_that_equals_a_rewritten_one_gives_way() -> None:
    uris = UriMap({"a": ["memo:x"], "b": ["memo:x"], "c": ["memo:a/x"]}, {})
    for server, uri in (("a", "memo:x"), ("b", "memo:x"), ("c", "memo:a/x")):
        assert uris.resolve(uris.expose(server, uri)) == [(server, uri)]


def test_what_a_colliding_template_expands_to_is_rewritten_too() -> None:
    uris = UriMap({}, {"a": ["test://item/{id}"], "b": ["test://item/{id}"]})
    assert uris.expose("a", "test://item/{id}") == "test://a/item/{id}"
    assert uris.expose("a", "test://item/7") == "test://a/item/7"
    assert uris.resolve("test://b/item/7") == [("b", "test://item/7")]
    assert uris.resolve_template("test://b/item/{id}") == [("b", "test://item/{id}")]


def test_a_uri_of_a_unique_template_finds_its_server() -> None:
    uris = UriMap({}, {"a": ["test://item/{id}"], "b": ["file:///{+path}"]})
    assert uris.resolve("test://item/7") == [("a", "test://item/7")]
    assert uris.resolve("file:///deep/down") == [("b", "file:///deep/down")]
    assert uris.resolve("test://item/7/more") == []


@pytest.mark.parametrize(
    ("template", "uri", "is_match"),
    [
        ("memo:x", "memo:x", True),
        ("memo:x", "memo:xy", False),
        ("a:{x}b", "a:bab", True),
        ("a:{x}/{y}.txt", "a:b/c.txt", True),
        ("a:{x}/{y}.txt", "a:b/c/d.txt", False),
        ("a:{+dir}/{name}.txt", "a:b/c/d.txt", True),
        ("a:{path*}/end", "a:b/c/end", True),
        ("a:{x}{?q}", "a:b?q=1", True),
        ("a:{x}aa", "a:a", False),
        ("a:{x}b{y}b", "a:b", False),
    ],
)
def test_a_template_matches_what_it_can_expand_to(template: str, uri: str, is_match: bool) -> None:
    assert UriTemplate(template).matches(uri) is is_match


def test_a_template_of_many_expressions_does_not_hold_the_gateway_up() -> None:
    many = [f"{{+{letter}}}" for letter in "abcdefghijkl"]
    uris = UriMap({"a": []}, {"a": ["".join(many) + "!", "/".join(many) + "!"]})
    assert uris.resolve("file:///" + "a/" * 1000) == []


def test_what_follows_after_too_many_expressions_is_anything() -> None:
    template = UriTemplate("a:" + "{x}/" * (MAX_EXPRESSIONS + 1) + "end")
    assert template.matches("a:" + "1/" * (MAX_EXPRESSIONS + 1) + "end")
    assert template.matches("a:" + "1/" * (MAX_EXPRESSIONS + 1) + "more")
    assert not template.matches("a:" + "1/" * (MAX_EXPRESSIONS - 2) + "end")


def test_a_uri_of_endless_length_comes_from_no_template() -> None:
    assert not UriTemplate("a:{x}").matches("a:" + "x" * MAX_URI)


def test_a_long_chain_of_uris_gives_way_to_the_end() -> None:
    """Each equals the one before it as rewritten: looking at all of them for each would take minutes."""
    chain = ["memo:" + "a/" * length + "x" for length in range(5000)]
    uris = UriMap({"a": chain, "b": ["memo:x"]}, {})
    assert [uris.expose("a", uri) for uri in chain] == [*chain[1:], "memo:" + "a/" * 5000 + "x"]
    assert uris.resolve("memo:a/x") == [("a", "memo:x")]


def test_a_mention_of_another_servers_uri_does_not_lead_there() -> None:
    uris = UriMap({"a": ["memo:x", "memo:s"], "b": ["memo:s"]}, {})
    assert uris.resolve(uris.expose("b", "memo:x")) == [("b", "memo:x")]


def rewrite(uri: str) -> str:
    return with_server(uri, "a")


def test_every_place_of_a_uri_in_a_tool_result_is_rewritten() -> None:
    value = {
        "content": [
            {"type": "resource_link", "uri": "memo:x", "vendor": 1},
            {"type": "resource", "resource": {"uri": "memo:y", "text": "memo:z"}},
            {"type": "text", "text": "memo:x"},
            {"type": "unknown", "uri": "memo:x"},
        ]
    }
    assert rewrite_result("tools/call", value, rewrite) == {
        "content": [
            {"type": "resource_link", "uri": "memo:a/x", "vendor": 1},
            {"type": "resource", "resource": {"uri": "memo:a/y", "text": "memo:z"}},
            {"type": "text", "text": "memo:x"},
            {"type": "unknown", "uri": "memo:x"},
        ]
    }


def test_contents_and_prompt_messages_are_rewritten() -> None:
    assert rewrite_result("resources/read", {"contents": [{"uri": "memo:x"}]}, rewrite) == {
        "contents": [{"uri": "memo:a/x"}]
    }
    message = {"role": "user", "content": {"type": "resource_link", "uri": "memo:x"}}
    rewritten = rewrite_result("prompts/get", {"messages": [message]}, rewrite)
    assert rewritten["messages"][0]["content"]["uri"] == "memo:a/x"


def test_a_result_without_uris_stays_the_same_object() -> None:
    value = {"content": [{"type": "text", "text": "x"}]}
    assert rewrite_result("tools/call", value, rewrite) is value


def test_the_user_interface_of_a_tool_is_rewritten() -> None:
    tool = {"name": "t", "_meta": {"ui": {"resourceUri": "ui://panel", "csp": {}}, "ui/resourceUri": "ui://panel"}}
    assert rewrite_ui_resource(tool, rewrite)["_meta"] == {
        "ui": {"resourceUri": "ui://a/panel", "csp": {}},
        "ui/resourceUri": "ui://a/panel",
    }
