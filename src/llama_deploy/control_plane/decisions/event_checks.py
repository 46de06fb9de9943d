"""Checks of what clients send to a workflow: run arguments and events. Nothing is imported or created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_deploy.control_plane.decisions.service_versions import ServiceVersion
from llama_deploy.control_plane.decisions.value_checks import faults_of
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import EventDefinition
from llama_deploy.types.run_input import start_fields


def check_receiver(event: EventDefinition, service_name: str) -> None:
    """Check that an event is for the service of its task.

    Raises:
        InvalidRequestError: It names another one.
    """
    if event.agent_id not in (None, service_name):
        raise InvalidRequestError(f"the task belongs to service {service_name!r}, not to {event.agent_id!r}")


def input_fault(arguments: Mapping[str, Any], version: ServiceVersion) -> str | None:
    """Return why a version of a service does not accept run arguments. None: it may accept them."""
    check = version.input_check
    if check is None:
        return None
    properties = check.get("properties", {})
    faults = faults_of(start_fields(arguments, properties), check)
    return f"{'; '.join(faults)}. It takes: {', '.join(properties)}" if faults else None


def event_fault(name: str, fields: Mapping[str, Any], version: ServiceVersion) -> str | None:
    """Return why a version of a service does not accept an event. None: it may accept it.

    Args:
        name: The name of its class, as the sender knows it.
        fields: Its fields.
        version: The version.
    """
    known = version.accepted_events
    if known is None:
        return None
    accepted = f"it accepts: {', '.join(known) or 'none'}"
    match classes_of(name, known):
        case []:
            return (
                f"it does not accept events of the class {name!r}; {accepted}. An event that appears only in"
                " ctx.wait_for_event must be a HumanResponseEvent, or be named with --allow-type of llamactl"
                " or in the service's setting allowed_types (LLAMA_DEPLOY_WF_SERVICE_ALLOWED_TYPES)"
            )
        case [only]:
            faults = faults_of(fields, (version.event_schemas or {}).get(only))
            return f"the event {only} is not valid: {'; '.join(faults)}; {accepted}" if faults else None
        case several:
            return f"the event class {name!r} is ambiguous: name one of {', '.join(several)}"


def classes_of(name: str, known: Sequence[str]) -> list[str]:
    """Return the classes that a name may stand for.

    The class may stand in another module at the client, so its own name decides if the whole name is unknown.
    The workflow library leaves out the outer classes of a nested one.
    """
    if name in known:
        return [name]
    module, _, own = name.rpartition(".")
    found = [each for each in known if each.rpartition(".")[2] == own]
    nested = [each for each in found if module and each.startswith(f"{module}.")]
    return nested if len(nested) == 1 else found
