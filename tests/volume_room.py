"""The volume room as `app.main` puts it together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from app.database import Database
from app.engines.interface import Engine
from app.vault import Vault
from app.volumes import Removals, VolumePods, Volumes


def make_volumes(
    database: Database,
    engine: Engine,
    pods: VolumePods,
    *,
    vault: Vault,
    now: Callable[[], datetime],
    stop_wait_s: float = 15.0,
) -> Volumes:
    return Volumes(
        database=database,
        vault=vault,
        engine=engine,
        pods=pods,
        removals=Removals(database=database, engine=engine, now=now),
        now=now,
        stop_wait_s=stop_wait_s,
    )
