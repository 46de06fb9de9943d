"""Types of settings that come from the environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticUseDefault


def _ignore_service_links(value: object) -> object:
    # Beside a service named redis, Kubernetes sets REDIS_PORT=tcp://... in every container.
    if isinstance(value, str) and value.startswith("tcp://"):
        raise PydanticUseDefault
    return value


RemotePort = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_ignore_service_links)]
"""A port to connect to. What Kubernetes sets under the same name, for a service, counts as not set; so a port
that has to be set is missing."""

BoundPort = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_ignore_service_links)]
"""A port to listen on; 0: the system chooses one. Otherwise like `RemotePort`."""
