"""Routes of lists and counts of tasks."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field, model_validator

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.keys import PathKey
from llama_deploy.types.task_lists import (
    DEFAULT_PAGE,
    MAX_PAGE,
    CountBy,
    StepPage,
    TaskCounts,
    TaskFilter,
    TaskPage,
)
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import owner_of
from llama_deploy.web.query_parameters import check_known

_COUNT_BY: Final = ("status", "service")
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="The most items of the page.")]
Cursor = Annotated[
    str | None, Query(description="`next_cursor` of the page before. Left out: the first page.")
]


class TaskListQuery(TaskFilter):
    """The query of `GET /tasks`."""

    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    """The most tasks of the page."""
    cursor: str | None = None
    """`next_cursor` of the page before. Left out: the first page."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            check_known(values, cls.model_fields)
        return values

    @property
    def wanted(self) -> TaskFilter:
        """Which tasks are listed."""
        return TaskFilter.model_construct(**{name: getattr(self, name) for name in TaskFilter.model_fields})


def _split(by: str) -> list[CountBy]:
    names = [name for name in by.split(",") if name]
    if unknown := [name for name in names if name not in _COUNT_BY]:
        raise ValueError(f"{unknown[0]!r} is unknown; known: {', '.join(_COUNT_BY)}")
    return names  # type: ignore[return-value]


def _checked(by: str) -> str:
    _split(by)
    return by


By = Annotated[
    str,
    Query(
        description="By what tasks are counted: `status`, `service`, or both with a comma between them. "
        "Empty: all together."
    ),
    AfterValidator(_checked),
]


def task_list_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/tasks` that are not about one task. Include them before those that are."""
    router = new_router(CONTROL_PLANE_ACCESS, plane.owned_rows, prefix="/tasks", tags=["tasks"])

    @router.get(
        "",
        summary="List tasks",
        description="A page may have fewer tasks than `limit`, or none, although more follow: a list whose "
        "conditions no index answers together looks at a bounded number of tasks for each page. Read on "
        "until `next_cursor` is null.",
        response_model_exclude_unset=True,
    )
    async def list_tasks(
        query: Annotated[TaskListQuery, Query()], request: Request, response: Response
    ) -> TaskPage:
        owner = owner_of(request.scope)
        page = await plane.task_lists.page(query.wanted, owner=owner, limit=query.limit, cursor=query.cursor)
        if page.next_cursor is not None:
            response.headers["Link"] = _next_link(request, page.next_cursor)
        return page

    @router.get("/count", summary="Count tasks", response_model_exclude_none=True)
    async def count_tasks(request: Request, by: By = "status,service") -> TaskCounts:
        check_known(request.query_params, ["by"])
        return await plane.task_lists.count(_split(by), owner=owner_of(request.scope))

    @router.get("/{task_id}/steps", summary="List the steps of a task that have ended")
    async def get_steps(task_id: PathKey, limit: Limit = DEFAULT_PAGE, cursor: Cursor = None) -> StepPage:
        return await plane.task_lists.steps(task_id, limit=limit, cursor=cursor)

    return router


def _next_link(request: Request, cursor: str) -> str:
    """Return the value of a `Link` header (RFC 8288) that names the next page."""
    given = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f'<{request.url.path}?{urlencode([*given, ("cursor", cursor)])}>; rel="next"'
