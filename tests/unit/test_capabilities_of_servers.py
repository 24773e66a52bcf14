"""Linux capabilities of image servers: none, unless a definition of the operator's own keeps some."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.catalog.definition import ServerDefinition

IMAGE = {"name": "shot", "title": "Shot", "type": "server", "image": "acme/shot:1"}


def test_a_definition_of_the_operators_own_keeps_what_means_nothing_outside_the_container() -> None:
    assert ServerDefinition.model_validate(IMAGE).capabilities == ()
    assert ServerDefinition.model_validate(IMAGE | {"capabilities": ["CHOWN"]}).capabilities == ("CHOWN",)


@pytest.mark.parametrize("capability", ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "ALL", "MKNOD"])
def test_what_reaches_beyond_the_container_is_not_to_be_had(capability: str) -> None:
    with pytest.raises(ValidationError, match="capabilities"):
        ServerDefinition.model_validate(IMAGE | {"capabilities": [capability]})


def test_an_imported_definition_keeps_none() -> None:
    with pytest.raises(ValidationError, match="only a definition of the operator's own may keep capabilities"):
        ServerDefinition.imported(IMAGE | {"capabilities": ["CHOWN"]})


def test_only_an_image_server_has_any() -> None:
    remote = {"url": "https://docs.example/mcp", "transport_type": "sse"}
    with pytest.raises(ValidationError, match="only an image server can have it"):
        ServerDefinition.model_validate(
            {"name": "docs", "title": "Docs", "type": "remote", "remote": remote, "capabilities": ["CHOWN"]}
        )
