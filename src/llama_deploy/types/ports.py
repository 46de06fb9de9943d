"""Types of port settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticUseDefault


def _ignore_service_links(value: object) -> object:
    # For a service named redis, Kubernetes sets REDIS_PORT=tcp://... in every container.
    if isinstance(value, str) and value.startswith("tcp://"):
        raise PydanticUseDefault
    return value


RemotePort = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_ignore_service_links)]
"""A port to connect to. A value that Kubernetes sets for a service of the same name counts as not set."""

BoundPort = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_ignore_service_links)]
"""A port to listen on. 0: the system chooses a free one. Service values are ignored as in `RemotePort`."""
