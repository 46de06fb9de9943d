"""`llamactl send`: send an event to a task, and the command that answers a question."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.options import HUMAN_RESPONSE, server_option
from llama_deploy.client import Client, Service
from llama_deploy.printable import printable
from llama_deploy.types import EventDefinition, generate_id


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The command line of `llamactl send`."""

    task_id: str
    event: str
    """The class of the event."""
    fields: Sequence[str]
    as_json: bool


async def send_event(client: Client, options: SendOptions) -> None:
    """Send an event to a task and print that it is stored.

    Raises:
        CommandError: A field is malformed.
        TaskNotFoundError: The task does not exist.
        TaskFinishedError: The task has ended.
        InvalidRequestError: The workflow does not accept an event of this class.
    """
    fields = parse_arguments(options.fields, what="field")
    task = await client.task(options.task_id).info()
    session = await client.core.sessions.get(task.session_id)
    event = EventDefinition(
        event_obj_str=json.dumps({"qualified_name": options.event, "value": fields}),
        idempotency_key=generate_id(),
    )
    await session.send_event_def(task.task_id, event)
    facts = {"task_id": task.task_id, "event": options.event}
    typer.echo(
        json.dumps(facts) if options.as_json else printable(f"Sent {options.event} to task {task.task_id}.")
    )


def answer_command(service: Service, task_id: str, *, url: str) -> str:
    """Return the shell command that answers a question of a task."""
    command = shlex.join(["llamactl", *server_option(url), "send", task_id])
    match service.answer_events or [HUMAN_RESPONSE]:
        case [only] if only == HUMAN_RESPONSE:
            return f"{command} response=..."
        case [only]:
            return f"{command} --event {only} KEY=VALUE"
        case several:
            return f"{command} --event CLASS KEY=VALUE, where CLASS is {' or '.join(several)}"
