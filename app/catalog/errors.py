"""What the catalog refuses: manifests of an operator, options of a caller."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from app.errors import InvalidRequest, SandgateError

_SHOWN = 20


class CatalogError(SandgateError):
    """Manifests that cannot be used, each as `file: entry: field: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        super().__init__("The catalog cannot be read.\n" + "\n".join([*problems[:_SHOWN], *more]))
        self.problems = problems


class OptionError(InvalidRequest):
    """An option of a server is unknown, missing or unusable. `field` is its property name, or None."""

    def __init__(self, server: str, field: str | None, message: str) -> None:
        super().__init__(f"MCP server {server}: {f'{field}: ' if field else ''}{message}")
        self.server = server
        self.field = field


def problems_of(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Each problem as its field and what is wrong with it."""
    for problem in error.errors(include_input=False, include_url=False):
        path = [str(step) for step in problem["loc"]]
        yield ".".join([*path, *filter(None, [problem.get("ctx", {}).get("field")])]), problem["msg"]
