"""Names in the sandbox: unique ones stay, colliding ones are prefixed, nothing depends on order."""

import itertools

import pytest
from sandgate_gateway.naming import MAX_LENGTH, expose


def test_a_unique_name_stays_the_servers_own() -> None:
    assert expose({"a": ["read"], "b": ["write"]}) == {("a", "read"): "read", ("b", "write"): "write"}


def test_all_names_that_collide_are_prefixed() -> None:
    assert expose({"a": ["run", "x"], "b": ["run"]}) == {("a", "run"): "a_run", ("a", "x"): "x", ("b", "run"): "b_run"}


def test_always_prefixes_everything() -> None:
    assert expose({"a": ["run"], "b": ["x"]}, "always") == {("a", "run"): "a_run", ("b", "x"): "b_x"}


def test_a_name_that_equals_a_prefixed_one_gives_way() -> None:
    names = expose({"a": ["run"], "b": ["run"], "c": ["a_run"]})
    assert names == {("a", "run"): "a_run", ("b", "run"): "b_run", ("c", "a_run"): "c_a_run"}


def test_prefixes_that_meet_are_told_apart_by_a_hash() -> None:
    names = expose({"a": ["b_c"], "a_b": ["c"]}, "always")
    assert len(set(names.values())) == 2
    assert all(name.startswith("a_b_c_") for name in names.values())


def test_the_outcome_does_not_depend_on_the_order_of_servers() -> None:
    servers = {"a": ["run", "b_run"], "b": ["run"], "a_b": ["run", "x" * 80], "github/o/r": ["run", "x" * 80]}
    outcomes = [expose(dict(order)) for order in itertools.permutations(servers.items())]
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("own", ["x" * 65, "späße", "a/b c", "", "x" * 300])
def test_every_exposed_name_is_one_that_model_apis_take(own: str) -> None:
    for naming in ("auto", "always"):
        (name,) = expose({"github/owner/repo": [own]}, naming).values()
        assert 1 <= len(name) <= MAX_LENGTH
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def test_a_slash_in_a_server_name_becomes_an_underscore() -> None:
    assert expose({"github/o/r": ["run"]}, "always") == {("github/o/r", "run"): "github_o_r_run"}


def test_long_names_with_the_same_beginning_stay_apart() -> None:
    names = expose({"a": ["x" * 70 + "1", "x" * 70 + "2"]})
    assert len(set(names.values())) == 2


def test_a_server_that_guesses_a_hashed_name_gets_nobody_elses() -> None:
    hashed = expose({"a": ["b_c"], "a_b": ["c"]}, "always")["a", "b_c"]
    names = expose({"a": ["b_c"], "a_b": ["c"], "": [hashed.removeprefix("_")]}, "always")
    assert len(set(names.values())) == 3
