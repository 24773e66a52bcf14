"""Configured secrets never reach a reader."""

from sandgate_gateway.redaction import Redactor


def test_values_of_six_characters_and_more_are_masked() -> None:
    redact = Redactor(["secret", "short", "topsecretkey"])
    assert redact("secret short topsecretkey") == "*** short ***"


def test_a_header_value_is_masked_with_and_without_its_scheme() -> None:
    redact = Redactor(["Bearer abcdef123"])
    assert redact("token abcdef123, header Bearer abcdef123") == "token ***, header ***"
