"""The route of the audit log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field, model_validator

from llama_deploy.control_plane.decisions.cursors import MAX_CURSOR_LENGTH
from llama_deploy.control_plane.http.key_routes import of_tenant
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.audit import MAX_AUDIT_PAGE, AuditFilter, AuditPage
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.query_parameters import check_known


class AuditQuery(AuditFilter):
    """The query of `GET /audit`."""

    cursor: str | None = Field(default=None, max_length=MAX_CURSOR_LENGTH)
    """`next_cursor` of the page before. Left out: the first page."""
    limit: int = Field(default=100, ge=1, le=MAX_AUDIT_PAGE)
    """The most entries of the page."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            check_known(values, cls.model_fields)
        return values

    @property
    def wanted(self) -> AuditFilter:
        """Which entries are listed."""
        names = AuditFilter.model_fields
        return AuditFilter.model_construct(**{name: getattr(self, name) for name in names})


def audit_routes(plane: ControlPlane) -> APIRouter:
    """Return the route `/audit`. There is none that changes the log."""
    router = new_router(CONTROL_PLANE_ACCESS, tags=["audit"])

    @router.get("/audit", summary="List who has changed what, and who was refused, the newest first")
    async def list_audit(query: Annotated[AuditQuery, Query()], request: Request) -> AuditPage:
        tenant = of_tenant(request)
        return await plane.audit.list(query.wanted, tenant=tenant, cursor=query.cursor, limit=query.limit)

    return router
