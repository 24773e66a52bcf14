"""Templates: what sandboxes are started from, how they are named and tagged, and how they are built.

Knows nothing of sandboxes, nor of HTTP.
"""

from app.templates.models import BASE_TEMPLATE, GATEWAY_TEMPLATE, ResolvedTemplate, Snapshot, SnapshotPage
from app.templates.service import TemplateService, built_in_template

__all__ = [
    "BASE_TEMPLATE",
    "GATEWAY_TEMPLATE",
    "ResolvedTemplate",
    "Snapshot",
    "SnapshotPage",
    "TemplateService",
    "built_in_template",
]
