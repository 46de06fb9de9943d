"""The routes of the 0.6 API. Each endpoint is also a method of `ControlPlaneServer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from llama_deploy.control_plane.http.core_endpoints import CoreEndpoints
from llama_deploy.control_plane.http.stream_responses import NDJSON
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS

_TASK: Final = "/sessions/{session_id}/tasks/{task_id}"


def core_routes(endpoints: CoreEndpoints) -> APIRouter:
    """Return the routes of the 0.6 API over the methods of a server."""
    router = new_router(CONTROL_PLANE_ACCESS, endpoints.plane.owned_rows)
    routes: list[tuple[str, str, Callable[..., Any], str]] = [
        ("GET", "/", endpoints.show_home, "control plane"),
        ("GET", "/queue_config", endpoints.get_message_queue_config, "control plane"),
        ("POST", "/services/register", endpoints.register_service, "services"),
        ("POST", "/services/deregister", endpoints.deregister_service, "services"),
        ("GET", "/services", endpoints.get_all_services, "services"),
        ("GET", "/services/{service_name:path}", endpoints.get_service, "services"),
        ("POST", "/sessions/create", endpoints.create_session, "sessions"),
        ("GET", "/sessions", endpoints.get_all_sessions, "sessions"),
        ("GET", "/sessions/{session_id}", endpoints.get_session, "sessions"),
        ("POST", "/sessions/{session_id}/delete", endpoints.delete_session, "sessions"),
        ("POST", "/sessions/{session_id}/tasks", endpoints.add_task_to_session, "sessions"),
        ("GET", "/sessions/{session_id}/tasks", endpoints.get_session_tasks, "sessions"),
        ("GET", "/sessions/{session_id}/current_task", endpoints.get_current_task, "sessions"),
        ("GET", f"{_TASK}/result", endpoints.get_task_result, "sessions"),
        ("POST", f"{_TASK}/send_event", endpoints.send_event, "sessions"),
        ("GET", "/sessions/{session_id}/state", endpoints.get_session_state, "sessions"),
        ("POST", "/sessions/{session_id}/state", endpoints.update_session_state, "sessions"),
        ("PUT", "/sessions/{session_id}/state", endpoints.replace_session_state, "sessions"),
    ]
    for method, path, endpoint, tag in routes:
        router.add_api_route(path, endpoint, methods=[method], tags=[tag])
    router.add_api_route(
        f"{_TASK}/result_stream",
        endpoints.get_task_result_stream,
        methods=["GET"],
        response_class=StreamingResponse,
        responses={200: {"content": {NDJSON: {}}}},
        tags=["sessions"],
    )
    return router
