"""Operations on services."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from llama_deploy.client.operation import Operation, call, segment
from llama_deploy.types import ServiceDefinition
from llama_deploy.web.http_connection import HttpRequest


class Service(ServiceDefinition):
    """A service as a client sees it: its definition, with its running instances."""

    @property
    def id(self) -> str:
        """The service's name."""
        return self.service_name


_SERVICE: Final = TypeAdapter(Service)
_SERVICES: Final = TypeAdapter(dict[str, Service])
_NOTHING: Final = TypeAdapter[Any](Any)


def list_all() -> Operation[dict[str, Service]]:
    """Return the registered services by name."""
    return call(HttpRequest("GET", "/services"), _SERVICES)


def read(service_name: str) -> Operation[Service]:
    """Return one service.

    Raises:
        ServiceNotFoundError: Nobody has registered it.
    """
    return call(HttpRequest("GET", f"/services/{segment(service_name)}"), _SERVICE)


def register(definition: ServiceDefinition) -> Operation[Service]:
    """Make a service known, or replace its definition.

    Raises:
        InvalidRequestError: The definition is not accepted.
    """
    yield from call(HttpRequest("POST", "/services/register", json=definition), _NOTHING)
    return Service.model_validate(definition.model_dump())


def deregister(service_name: str) -> Operation[Any]:
    """Remove a service with all its instances.

    Raises:
        ServiceNotFoundError: Nobody has registered it.
    """
    request = HttpRequest("POST", "/services/deregister", params={"service_name": service_name})
    return call(request, _NOTHING)
