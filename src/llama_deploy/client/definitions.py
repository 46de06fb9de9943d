"""What a client receives beyond the wire models of `llama_deploy.types`."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field

from llama_deploy.types import ServiceDefinition


class Service(ServiceDefinition):
    """A registered service with its running instances."""

    @property
    def id(self) -> str:
        """The service's name."""
        return self.service_name


class ApiServerCondition(StrEnum):
    """The condition of an API server."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    """It responds and reports a problem."""
    DOWN = "Down"
    """It does not respond."""


class ApiServerStatus(BaseModel):
    """The status of an API server."""

    status: ApiServerCondition
    status_message: str = ""
    deployments: list[str] | None = None
    """The names of its deployments."""


class DeploymentDefinition(BaseModel):
    """A deployment as the API server lists it."""

    name: str = Field(min_length=1)
