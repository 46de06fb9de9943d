"""Checks of an event that is sent to a task."""

from __future__ import annotations

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import EventDefinition, ServiceDefinition


def check_event(event: EventDefinition, service_name: str, definition: ServiceDefinition | None) -> None:
    """Check the form of an event and that the service accepts its class. Nothing is imported or created.

    Raises:
        InvalidRequestError: The event is malformed, or of another service or class.
    """
    if event.agent_id not in (None, service_name):
        raise InvalidRequestError(f"the task belongs to service {service_name!r}, not to {event.agent_id!r}")
    name, _ = event.content()
    known = definition.accepted_events if definition is not None else None
    # The class may stand in another module at the client, so its own name decides.
    if known is not None and _class_name(name) not in {_class_name(item) for item in known}:
        raise InvalidRequestError(
            f"service {service_name!r} does not accept events of the class {name!r};"
            f" it accepts: {', '.join(known) or 'none'}. An event that appears only in ctx.wait_for_event"
            " must be a HumanResponseEvent, or be named with --allow-type of llamactl or in the service's"
            " setting allowed_types (LLAMA_DEPLOY_WF_SERVICE_ALLOWED_TYPES)"
        )


def _class_name(qualified_name: str) -> str:
    return qualified_name.rpartition(".")[2]
