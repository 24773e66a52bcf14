"""Packages of shipped servers, for tests' manifests: a program of the image needs some package to be named with it."""

from __future__ import annotations

from app.catalog.package import Package
from tests.shipped_catalog import shipped_catalog


def shipped_package(key: str) -> Package:
    definition = shipped_catalog().find(key)
    assert definition is not None
    assert definition.package is not None
    return definition.package


def shipped_package_field(key: str) -> dict[str, object]:
    """As the manifest has it."""
    return shipped_package(key).model_dump(mode="json", by_alias=True, exclude_defaults=True)
