"""What callers can do with templates; the building itself is in `app.templates.builder`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from app.errors import NotFound
from app.templates.models import BUILT_IN, GATEWAY_TEMPLATE, ResolvedTemplate

InUse = Callable[[str], Awaitable[bool]]
"""Whether a sandbox of this template id is running or paused."""


class TemplateService:
    """
    async def add_snapshot(
        self, team_id: str, *, sandbox_id: str, image: str, name: str | None, base: ResolvedTemplate
    ) -> Snapshot
    async def list_snapshots(
        self, team_id: str, *, sandbox_id: str | None = None, name: str | None = None, limit: int, cursor: str | None
    ) -> SnapshotPage
    async def count_spawn(self, template_id: str) -> None
    """

    async def resolve(self, team_id: str, reference: str) -> ResolvedTemplate:
        """`reference` is an id, `name`, `name:tag`, `<namespace>/name:tag`, or a snapshot's id or name.

        Raises: NotFound (no such template, or none of its builds is ready), InvalidRequest (its form).
        """
        if reference not in BUILT_IN:
            raise NotFound(f"There is no template {reference!r}. Known templates: {', '.join(BUILT_IN)}.")
        return ResolvedTemplate(
            template_id=reference,
            build_id="00000000-0000-0000-0000-000000000000",
            name=reference,
            image=None,
            has_gateway=reference == GATEWAY_TEMPLATE,
            user=None,
            workdir=None,
            envs={},
            start_command=None,
            ready_command=None,
            cpus=None,
            memory_mib=None,
            kind="built-in",
        )
