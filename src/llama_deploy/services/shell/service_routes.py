"""The HTTP routes of a workflow service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from llama_deploy.messages import QueueMessage
from llama_deploy.web.application import create_app

if TYPE_CHECKING:
    from llama_deploy.services.shell.workflow_service import WorkflowService


def create_service_app(service: WorkflowService) -> FastAPI:
    """Return the application of a service, which processes tasks while the application runs."""
    app = create_app(title=f"llama_deploy service {service.service_name}", lifespan=service.lifespan)

    @app.get("/")
    async def home() -> dict[str, str]:
        """Return what the service is and how it is doing."""
        return await service.home()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Return that the service answers."""
        return {"status": "ok"}

    @app.post("/process_message")
    async def process_message(request: Request) -> None:
        """Process a queue message. A status other than 2xx returns it to the queue."""
        await service.process_message(QueueMessage.decode(await request.body()))

    return app
