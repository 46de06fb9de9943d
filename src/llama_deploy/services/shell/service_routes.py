"""The HTTP routes of a workflow service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from llama_deploy.health import Checks
from llama_deploy.measures import process_text
from llama_deploy.messages import QueueMessage
from llama_deploy.metric_texts import CONTENT_TYPE, METRICS_PATH, merged
from llama_deploy.web.application import create_app
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import SERVICE_ACCESS
from llama_deploy.web.edge.bearer_tokens import shared_key
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.health_routes import add_health_routes

if TYPE_CHECKING:
    from llama_deploy.services.shell.workflow_service import WorkflowService


def create_service_app(service: WorkflowService) -> FastAPI:
    """Return the application of a service, which processes tasks while the application runs."""
    app = create_app(title=f"llama_deploy service {service.service_name}", lifespan=service.lifespan)
    router = new_router(SERVICE_ACCESS)
    router.get("/")(service.home)

    async def ready() -> Checks:
        return service.health_checks()

    add_health_routes(router, ready)

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Return that the service answers."""
        return {"status": "ok"}

    @router.get(
        METRICS_PATH,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Return the metrics of the service and its process, in the text format of Prometheus."""
        texts = (service.metrics_text(), process_text())
        return Response(merged((text, {}) for text in texts), media_type=CONTENT_TYPE)

    @router.post("/process_message")
    async def process_message(request: Request) -> None:
        """Process a queue message. A status other than 2xx returns it to the queue."""
        await service.process_message(QueueMessage.decode(await request.body()))

    app.include_router(router)
    return app


def service_edge(service: WorkflowService) -> ASGIApp:
    """Return the application of a service behind the layers of the edge, to be served."""
    config = service.config
    hosts = [config.host, config.internal_host or "", *config.trusted_hosts]
    settings = EdgeSettings(
        env_prefix="LLAMA_DEPLOY_WF_SERVICE_",
        hosts=hosts,
        authenticator=shared_key(config.api_key),
        access=SERVICE_ACCESS,
    )
    return build_edge(service.app, settings)
