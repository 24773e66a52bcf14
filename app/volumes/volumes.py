"""What callers can do with volumes, and where they are recorded."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import RowMapping, delete, insert, select
from sqlalchemy.exc import IntegrityError

from app.database import Database
from app.database.tables import removed_volumes, sandboxes, volumes
from app.engines.interface import Engine
from app.errors import Conflict, EngineError, InvalidRequest, NotFound, Unauthorized
from app.ids_and_time import new_id, new_token
from app.sandboxes.models import MountedVolume
from app.vault import Vault
from app.volumes.failures import engine_errors_mapped
from app.volumes.mounts import check_mount_paths
from app.volumes.pods import VolumePods
from app.volumes.removals import Removals

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    id: str
    name: str
    token: str = field(repr=False)
    """Lets whoever has it at the content, and at nothing else."""


async def forget_all_volumes(database: Database) -> None:
    """Of every team, once the engine has none of them left."""
    async with database.transaction() as connection:
        await connection.execute(delete(volumes))
        await connection.execute(delete(removed_volumes))


class Volumes:
    def __init__(
        self,
        *,
        database: Database,
        vault: Vault,
        engine: Engine,
        pods: VolumePods,
        removals: Removals,
        now: Callable[[], datetime],
        stop_wait_s: float = 15.0,
    ) -> None:
        """`stop_wait_s`: how long a deletion waits for the containers of sandboxes that were told to stop."""
        self._database = database
        self._vault = vault
        self._engine = engine
        self._pods = pods
        self._removals = removals
        self._now = now
        self._stop_wait_s = stop_wait_s

    async def create(self, team_id: str, name: str) -> Volume:
        """Raises: InvalidRequest (name malformed or taken), EngineAway, OutOfSpace, SandboxFailed."""
        if not _NAME.fullmatch(name):
            raise InvalidRequest("name: a volume's name has 1 to 128 of the letters a-z, A-Z, 0-9, _ and -.")
        volume = Volume(id=new_id("vol"), name=name, token=new_token())
        try:
            async with self._database.transaction() as connection:
                await connection.execute(
                    insert(volumes).values(
                        id=volume.id,
                        team_id=team_id,
                        name=name,
                        created_at=self._now(),
                        token_encrypted=self._vault.encrypt(volume.token),
                    )
                )
        except IntegrityError:
            raise InvalidRequest(f"name: there is a volume {name!r} already.") from None
        try:
            with engine_errors_mapped(f"Volume {name!r} could not be made"):
                await self._engine.create_volume(volume.id)
        except BaseException:
            await self._removals.forget(volume.id)
            with suppress(EngineError):
                await self._engine.remove_volume(volume.id)
            raise
        return volume

    async def list(self, team_id: str) -> list[Volume]:
        """The team's volumes, oldest first."""
        query = select(volumes).where(volumes.c.team_id == team_id).order_by(volumes.c.created_at, volumes.c.id)
        async with self._database.reading() as connection:
            return [self._volume(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, team_id: str, volume_id: str) -> Volume:
        """Raises: NotFound, also for another team's volume."""
        async with self._database.reading() as connection:
            query = select(volumes).where(volumes.c.id == volume_id, volumes.c.team_id == team_id)
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"Volume {volume_id} was not found.")
        return self._volume(row)

    async def delete(self, team_id: str, volume_id: str) -> None:
        """With everything in it. Raises: NotFound, Conflict (a sandbox has it), EngineAway, SandboxFailed."""
        volume = await self.get(team_id, volume_id)
        with engine_errors_mapped(f"Volume {volume.name!r} could not be removed"):
            async with self._pods.closed(volume_id):
                if not await self._remove(team_id, volume_id):
                    raise Conflict(f"Volume {volume.name!r} is mounted in a sandbox. Kill that sandbox first.")
                await self._removals.forget(volume_id)

    async def _remove(self, team_id: str, volume_id: str) -> bool:
        """False while a sandbox has it. The containers of one that was killed a moment ago are waited for."""
        deadline = asyncio.get_running_loop().time() + self._stop_wait_s
        while not await self._engine.remove_volume(volume_id):
            if await self._is_mounted(team_id, volume_id) or asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _is_mounted(self, team_id: str, volume_id: str) -> bool:
        """Whether a sandbox has it that was not told to stop."""
        query = select(sandboxes.c.volume_mounts).where(
            sandboxes.c.team_id == team_id, sandboxes.c.target.in_(("running", "paused"))
        )
        async with self._database.reading() as connection:
            mounts = (await connection.execute(query)).scalars()
            return any(mount["volume_id"] == volume_id for mounted in mounts for mount in mounted)

    async def admit(self, volume_id: str, token: str | None) -> None:
        """Let the holder of a volume's token at its content. Raises: Unauthorized, whether or not there is a volume."""
        async with self._database.reading() as connection:
            query = select(volumes.c.token_encrypted).where(volumes.c.id == volume_id)
            encrypted = (await connection.execute(query)).scalar_one_or_none()
        expected = new_token() if encrypted is None else str(self._vault.decrypt(encrypted))
        if not hmac.compare_digest((token or "").encode(), expected.encode()):
            raise Unauthorized(
                f"This is not the token of volume {volume_id}, or the volume is gone. Send the volume's token as"
                " Authorization: Bearer; GET /volumes/{volumeID} tells it."
            )

    async def resolve_mounts(self, team_id: str, wanted: Sequence[tuple[str, str]]) -> tuple[MountedVolume, ...]:
        """The volumes that a create asks for, as pairs of name and path. Raises: InvalidRequest, NotFound."""
        if not wanted:
            return ()
        paths = check_mount_paths([path for _, path in wanted])
        names = {name for name, _ in wanted}
        query = select(volumes.c.name, volumes.c.id).where(volumes.c.team_id == team_id, volumes.c.name.in_(names))
        async with self._database.reading() as connection:
            id_of = {row.name: row.id for row in await connection.execute(query)}
        if missing := sorted(names - id_of.keys()):
            raise NotFound(f"volumeMounts: there is no volume {missing[0]!r}. POST /volumes makes one.")
        return tuple(
            MountedVolume(volume_id=id_of[name], name=name, path=path)
            for (name, _), path in zip(wanted, paths, strict=True)
        )

    def _volume(self, row: RowMapping) -> Volume:
        return Volume(id=row["id"], name=row["name"], token=str(self._vault.decrypt(row["token_encrypted"])))
