"""Plans of sandboxes, made from a request, a catalog and one blueprint."""

from __future__ import annotations

from app.catalog import Catalog
from app.engines.interface import Limits
from app.sandboxes.models import CreateSandbox
from app.sandboxes.planning import Blueprint, SandboxPlan, plan_sandbox
from app.templates import ResolvedTemplate

BLUEPRINT = Blueprint(
    workspace_image="workspace:1",
    gateway_image="gateway:1",
    workspace_limits=Limits(memory_mib=512, cpus=1.0, pids=100),
    server_start_timeout_s=30,
    github_url="https://git.example",
)


def template_of(name: str, **more: object) -> ResolvedTemplate:
    fields: dict[str, object] = {
        "template_id": name,
        "build_id": "b1",
        "name": name,
        "image": None,
        "has_gateway": name == "mcp-gateway",
        "user": None,
        "workdir": None,
        "envs": {},
        "start_command": None,
        "ready_command": None,
        "cpus": None,
        "memory_mib": None,
        "kind": "built-in",
    }
    return ResolvedTemplate(**{**fields, **more})  # type: ignore[arg-type]


def plan(catalog: Catalog, **request: object) -> SandboxPlan:
    wished = CreateSandbox(timeout_s=60, **request)  # type: ignore[arg-type]
    return plan_sandbox(wished, template_of(wished.template), catalog, BLUEPRINT)
