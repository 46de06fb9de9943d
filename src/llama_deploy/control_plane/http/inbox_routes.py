"""Routes of questions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from llama_deploy.control_plane.decisions.cursors import MAX_CURSOR_LENGTH
from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.requests.tasks.inbox_requests import MAX_INBOX_PAGE
from llama_deploy.types.keys import PathKey
from llama_deploy.types.questions import (
    LINE_PATTERN,
    MAX_ASSIGNEE_CHARACTERS,
    MAX_TAG_CHARACTERS,
    Answer,
    Assignment,
    Callback,
    Question,
    QuestionPage,
    Refusal,
)
from llama_deploy.types.services import MAX_NAME_LENGTH
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import owner_of

QuestionId = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9-]+$")]
Token = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")]
_Service = Annotated[
    str | None,
    Query(max_length=MAX_NAME_LENGTH, pattern=LINE_PATTERN, description="Those of this service."),
]
_Assignee = Annotated[
    str | None,
    Query(
        max_length=MAX_ASSIGNEE_CHARACTERS,
        pattern=LINE_PATTERN,
        description="Those assigned to this name.",
    ),
]
_Tag = Annotated[
    str | None,
    Query(max_length=MAX_TAG_CHARACTERS, pattern=LINE_PATTERN, description="Those with this tag."),
]
_Cursor = Annotated[
    str | None, Query(max_length=MAX_CURSOR_LENGTH, description="`next_cursor` of the page before.")
]
_Limit = Annotated[int, Query(ge=1, le=MAX_INBOX_PAGE, description="The most questions to return.")]


def inbox_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/inbox` and `/callbacks`."""
    inbox = plane.inbox

    async def check_token(request: Request) -> None:
        # Anybody may send a body here, but not fill the memory with it.
        await inbox.check_callback(request.path_params["token"])

    checks = {"/callbacks/{token}": check_token}
    router = new_router(CONTROL_PLANE_ACCESS, plane.owned_rows, body_checks=checks, tags=["inbox"])

    @router.get("/inbox", summary="List open questions of all services, the oldest first")
    async def list_questions(
        request: Request,
        service: _Service = None,
        assignee: _Assignee = None,
        tag: _Tag = None,
        cursor: _Cursor = None,
        limit: _Limit = 50,
    ) -> QuestionPage:
        return await inbox.list(
            owner=owner_of(request.scope),
            service_name=service,
            assignee=assignee,
            tag=tag,
            cursor=cursor,
            limit=limit,
        )

    @router.get("/inbox/{question_id}", summary="Get a question, open or not")
    async def get_question(question_id: QuestionId) -> Question:
        return await inbox.get(question_id)

    @router.post("/inbox/{question_id}/answer", summary="Answer a question, once")
    async def answer(question_id: QuestionId, answer: Answer, request: Request) -> Question:
        return await inbox.answer(question_id, answer, by=actor_of(plane, request.scope))

    @router.post("/inbox/{question_id}/refuse", summary="Refuse to answer: the task fails")
    async def refuse(question_id: QuestionId, refusal: Refusal, request: Request) -> Question:
        return await inbox.refuse(question_id, refusal.reason, by=actor_of(plane, request.scope))

    @router.post("/inbox/{question_id}/assign", summary="Say who is to answer")
    async def assign(question_id: QuestionId, assignment: Assignment, request: Request) -> Question:
        by = actor_of(plane, request.scope)
        return await inbox.assign(question_id, assignment.assignee, by=by)

    @router.post("/inbox/{question_id}/callback", summary="Get a URL that answers the question, once")
    async def callback(question_id: QuestionId, request: Request) -> Callback:
        scheme = "https" if plane.config.use_tls else request.url.scheme
        base_url = f"{scheme}://{request.url.netloc}"
        return await inbox.callback(question_id, base_url=base_url, by=actor_of(plane, request.scope))

    @router.post("/callbacks/{token}", summary="Answer the question of a callback; the body is the event")
    async def call_back(token: Token, event: dict[str, Any], request: Request) -> Question:
        return await inbox.call_back(token, event, by=actor_of(plane, request.scope))

    @router.get("/tasks/{task_id}/questions", summary="List the open questions of a task", tags=["tasks"])
    async def questions_of_task(task_id: PathKey) -> QuestionPage:
        await plane.tasks.get(task_id)
        return await inbox.of_task(task_id)

    return router
