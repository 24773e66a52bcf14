"""Which made-up starts of a server stand for the servers of callers."""

from __future__ import annotations

from typing import Any

from app.catalog import ServerDefinition
from app.catalog.rehearsals import fingerprint_of_any, rehearsals_of, rehearsed_fingerprints

MANIFEST: dict[str, Any] = {
    "name": "acme-mcp",
    "title": "Acme",
    "type": "server",
    "package": {"registry": "npm", "name": "@acme/mcp", "version": "1.4.2"},
    "command": ["acme-mcp", "--url={{acme-mcp.url}}", "--dir={{sandbox.home}}", "{{acme-mcp.tools|into}}"],
    "secrets": [
        {"name": "acme-mcp.key", "env": "ACME_KEY"},
        {"name": "acme-mcp.session", "env": "ACME_SESSION", "required": False},
    ],
    "env": [{"name": "ACME_ACCOUNT", "value": "{{acme-mcp.account}}"}],
    "config": {
        "properties": {
            "url": {"type": "string"},
            "account": {"type": "string", "example": "T0"},
            "tools": {"type": "array", "items": {"type": "string"}, "default": ["all"]},
        },
        "required": ["url"],
    },
}
ACME = ServerDefinition.model_validate(MANIFEST)
GIVEN = {"acmeKey": "k", "url": "https://acme.example"}


def test_a_server_is_started_with_all_that_can_be_made_up_and_with_no_more_than_it_needs() -> None:
    full, bare = rehearsals_of(ACME)
    assert (set(full.options), set(bare.options)) == ({"acmeKey", "acmeSession", "url", "account"}, {"acmeKey", "url"})
    assert full.fingerprint != bare.fingerprint


def test_a_server_that_takes_no_more_than_it_needs_is_started_once() -> None:
    plain = ServerDefinition.model_validate(
        {**MANIFEST, "secrets": MANIFEST["secrets"][:1], "config": None, "env": [], "command": ["acme-mcp"]}
    )
    assert len(rehearsals_of(plain)) == 1


def test_whose_credential_it_is_and_what_only_callers_can_know_makes_no_difference() -> None:
    full, bare = rehearsals_of(ACME)
    assert rehearsed_fingerprints(ACME, GIVEN)[0] == bare.fingerprint
    assert rehearsed_fingerprints(ACME, {"ACME_KEY": "other", "url": "https://b.example"})[0] == bare.fingerprint
    everything = {**GIVEN, "acme-mcp.session": "s", "account": "T99"}
    assert rehearsed_fingerprints(ACME, everything)[0] == full.fingerprint


def test_a_default_that_is_given_is_the_default_and_another_setting_is_another_server() -> None:
    _, bare = rehearsals_of(ACME)
    assert rehearsed_fingerprints(ACME, {**GIVEN, "tools": ["all"], "account": None})[0] == bare.fingerprint
    known = {rehearsal.fingerprint for rehearsal in rehearsals_of(ACME)}
    known |= {fingerprint_of_any(one) for one in known if one is not None}
    assert known.isdisjoint(rehearsed_fingerprints(ACME, {**GIVEN, "tools": ["few"]}))


def test_what_can_be_left_out_counts_unless_all_rehearsals_came_to_the_same() -> None:
    full, bare = rehearsals_of(ACME)
    assert full.fingerprint is not None
    exactly, of_any = rehearsed_fingerprints(ACME, {**GIVEN, "acmeSession": "s"})
    assert exactly not in (full.fingerprint, bare.fingerprint)
    assert of_any == fingerprint_of_any(full.fingerprint)


def test_a_server_whose_lists_depend_on_who_asks_is_never_listed_from_a_rehearsal() -> None:
    dynamic = ServerDefinition.model_validate({**MANIFEST, "dynamic": {"tools": True}})
    assert [rehearsal.fingerprint for rehearsal in rehearsals_of(dynamic)] == [None, None]
    assert rehearsed_fingerprints(dynamic, GIVEN) == []
