"""Made-up options are accepted by every shipped server, and give it all the credentials it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalog import Catalog, PackageRun, ServerDefinition, render
from app.catalog.stand_ins import stand_in_options

SHIPPED = [
    definition
    for definition in Catalog.load(Path(__file__).resolve().parents[2] / "catalog" / "servers")
    if definition.package is not None
]


@pytest.mark.parametrize("definition", SHIPPED, ids=lambda definition: definition.key)
def test_a_shipped_server_can_be_tried_with_made_up_options(definition: ServerDefinition) -> None:
    run = render(definition, definition.key, stand_in_options(definition)).run
    assert isinstance(run, PackageRun)
    assert {secret.env for secret in definition.secrets} <= run.env.keys()
