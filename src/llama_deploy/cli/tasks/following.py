"""`llamactl tasks events`, `wait` and `cancel`."""

from __future__ import annotations

import typer

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.running.run_command import JsonOutput, Output, ReadableOutput, end_of
from llama_deploy.client import Client, Service
from llama_deploy.printable import printable
from llama_deploy.types import NewAttempt, TaskStatus


async def print_events(client: Client, task_id: str, *, after: int, as_json: bool) -> None:
    """Print the events of a task as they arrive.

    Raises:
        TaskNotFoundError: It does not exist.
    """
    output = await _output(client, task_id, as_json=as_json)
    async for item in client.task(task_id).events(after=after, attempts=True):
        if isinstance(item, NewAttempt):
            output.new_attempt(item)
        else:
            output.event(item)


async def wait_for_task(client: Client, task_id: str, *, as_json: bool) -> int:
    """Print the result of a task once it has ended, and return the exit code.

    Raises:
        TaskNotFoundError: It does not exist.
    """
    output = await _output(client, task_id, as_json=as_json)
    handle = client.task(task_id)
    handle.session_id = (await handle.info()).session_id
    end = await end_of(handle)
    output.end(end)
    return 0 if end.status is TaskStatus.SUCCEEDED else ExitCode.FAILED


async def cancel_task(client: Client, task_id: str, *, as_json: bool) -> None:
    """Cancel a task and print its status.

    Raises:
        TaskNotFoundError: It does not exist.
        TaskFinishedError: It has ended with another status.
    """
    view = await client.tasks.cancel(task_id)
    told = f"Task {view.task_id} is {view.status.value}"
    if not view.status.is_terminal:
        told += "; it ends when its instance has stopped it"
    typer.echo(view.model_dump_json() if as_json else printable(f"{told}."))


async def _output(client: Client, task_id: str, *, as_json: bool) -> Output:
    task = await client.task(task_id).info()
    service = await _service_of(client, task.service_name)
    return JsonOutput(service) if as_json else ReadableOutput(service)


async def _service_of(client: Client, name: str) -> Service:
    """Return the service of a task, which may have been removed since."""
    await client.core.services.list()
    return client.core.services.items.get(name) or Service(service_name=name, description="")
