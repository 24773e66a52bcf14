"""Puts together the parts that create, move and end sandboxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import httpx

from app.catalog import Catalog
from app.engines.interface import Engine
from app.packages import PackageStore
from app.sandboxes.background import Background
from app.sandboxes.directory import Directory
from app.sandboxes.expiry import Expiry
from app.sandboxes.journal import Journal
from app.sandboxes.planning import Blueprint
from app.sandboxes.pod_clients import AgentClient, GatewayClient
from app.sandboxes.reconciler import Reconciler
from app.sandboxes.service import SandboxService
from app.sandboxes.store import Store
from app.sandboxes.tool_memory import ToolMemory
from app.sandboxes.transitions import Transitions
from app.sandboxes.warm_pool import WarmPlans, WarmPool
from app.templates import TemplateService


@dataclass(frozen=True)
class Sandboxes:
    service: SandboxService
    """Answers requests."""
    expiry: Expiry
    reconciler: Reconciler
    """Nothing moves before its `run` was awaited to be ready."""


def make_sandboxes(
    *,
    store: Store,
    engine: Engine,
    http: httpx.AsyncClient,
    memory: ToolMemory,
    journal: Journal,
    packages: PackageStore,
    templates: TemplateService,
    directory: Directory,
    catalog: Catalog,
    blueprint: Blueprint,
    warm_plans: WarmPlans,
    now: Callable[[], datetime],
    listen_deadline_s: float = 20.0,
    sweep_interval_s: float = 15.0,
    prepare_interval_s: float = 300.0,
) -> Sandboxes:
    """`listen_deadline_s` is how long agent and gateway of a started pod may take to listen."""
    gateways = GatewayClient(http)
    background = Background()
    transitions = Transitions(
        store=store,
        engine=engine,
        agents=AgentClient(http),
        gateways=gateways,
        memory=memory,
        journal=journal,
        packages=packages,
        directory=directory,
        catalog=catalog,
        blueprint=blueprint,
        background=background,
        now=now,
        listen_deadline_s=listen_deadline_s,
    )
    expiry = Expiry(
        store=store,
        transitions=transitions,
        directory=directory,
        journal=journal,
        background=background,
        now=now,
    )
    warm_pool = WarmPool(
        warm_plans,
        store=store,
        engine=engine,
        starter=transitions.starter,
        now=now,
        is_busy=lambda: transitions.is_starting,
    )
    reconciler = Reconciler(
        store=store,
        engine=engine,
        transitions=transitions,
        expiry=expiry,
        warm_pool=warm_pool,
        packages=packages,
        directory=directory,
        journal=journal,
        background=background,
        sweep_interval_s=sweep_interval_s,
        prepare_interval_s=prepare_interval_s,
    )
    service = SandboxService(
        store=store,
        transitions=transitions,
        expiry=expiry,
        warm_pool=warm_pool,
        directory=directory,
        gateways=gateways,
        templates=templates,
        catalog=catalog,
        blueprint=blueprint,
        now=now,
    )
    return Sandboxes(service=service, expiry=expiry, reconciler=reconciler)
