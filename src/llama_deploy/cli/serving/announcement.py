"""What `llamactl serve` and `llamactl worker` print when they are ready."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from llama_deploy.cli.console import OutputConsole
from llama_deploy.cli.options import Auth, server_option
from llama_deploy.cli.schemas import example, summarize
from llama_deploy.deploy import LocalStack
from llama_deploy.printable import printable
from llama_deploy.services import WorkflowService
from llama_deploy.types import ServiceDefinition

if TYPE_CHECKING:
    from llama_deploy.cli.place import Place  # imports SQLAlchemy, which workers do not need

_KEY_OF_CURL: Final = ("-H", '"Authorization: Bearer $LLAMA_DEPLOY_API_KEY"')
"""As the shell expands it, so that the key is not printed."""
_PARAMETERS_OF_RUN: Final = frozenset({"session", "timeout", "arguments", "as_type"})
"""The parameters of `Client.run`, which are not run arguments."""


def announce_stack(
    stack: LocalStack,
    place: Place,
    definitions: Sequence[ServiceDefinition],
    *,
    processes: Sequence[int] = (),
    as_json: bool,
) -> None:
    """Print the services of a stack and commands to call them.

    Args:
        stack: A running stack.
        place: Where it listens and stores its data.
        definitions: The services.
        processes: The ids of the processes that run them. Empty: this process does.
        as_json: Print one JSON object on one line instead.
    """
    if as_json:
        _print_json(
            {
                "control_plane_url": stack.control_plane_url,
                "message_queue_url": stack.message_queue_url,
                "data_dir": None if place.store else str(place.data_dir.resolve()),
                "state_store": place.public_store_uri,
                "pid": os.getpid(),
                "processes": list(processes) or [os.getpid()],
                "services": [_facts(definition) for definition in definitions],
            }
        )
        return
    console = OutputConsole()
    console.print(Text.assemble("control plane  ", (stack.control_plane_url, "bold")))
    console.print(f"message queue  {stack.message_queue_url}")
    console.print(f"data           {place.data}")
    if place.auth is not Auth.OFF:
        console.print(
            "callers        need a key in LLAMA_DEPLOY_API_KEY, which `llamactl keys create` prints"
        )
    console.print()
    for definition in definitions:
        _print_service(console, definition)
    if definitions:
        console.print("Try it from another terminal:\n")
        key = () if place.auth is Auth.OFF else _KEY_OF_CURL
        _print_commands(console, stack.control_plane_url, definitions[0], key=key)
    else:
        worker = ["llamactl", *server_option(stack.control_plane_url), "worker", "app:workflow"]
        console.print("No workflows are running yet. Start some with:\n")
        console.print(Text(shlex.join(worker) + "\n"))
    console.print("Press Ctrl-C to stop.", style="dim")


def announce_instances(
    services: Sequence[WorkflowService],
    *,
    control_plane_url: str,
    stop_pid: int,
    health_url: str | None,
    as_json: bool,
) -> None:
    """Print the instances that have joined a control plane.

    Args:
        services: The instances in this process.
        control_plane_url: The control plane.
        stop_pid: The process to stop: this one, or its supervisor.
        health_url: Where probes are answered. None: nowhere.
        as_json: As in `announce_stack`.
    """
    if as_json:
        facts = [
            {**_facts(service.service_definition), "instance_id": service.instance_id, "url": service.url}
            for service in services
        ]
        _print_json(
            {
                "control_plane_url": control_plane_url,
                "health_url": health_url,
                "pid": stop_pid,
                "processes": [os.getpid()],
                "services": facts,
            }
        )
        return
    console = OutputConsole()
    console.print(f"Joined {control_plane_url} (process {os.getpid()}):")
    for service in services:
        console.print(
            Text.assemble("  ", (service.service_name, "bold"), f"  {service.url}  {service.instance_id}")
        )
    if health_url is not None:
        console.print(f"Health: {health_url}")
    console.print("Press Ctrl-C to stop.", style="dim")


def _facts(definition: ServiceDefinition) -> dict[str, Any]:
    return definition.model_dump(
        mode="json", include={"service_name", "description", "input_schema", "output_schema"}
    )


def _print_json(facts: Mapping[str, Any]) -> None:
    # A program that starts this command waits for the line.
    print(json.dumps(facts), flush=True)  # noqa: T201


def _print_service(console: OutputConsole, definition: ServiceDefinition) -> None:
    about = f"  {printable(definition.description)}" if definition.description else ""
    console.print(Text.assemble((definition.service_name, "bold green"), about))
    console.print(Text(f"  arguments  {summarize(definition.input_schema)}"))
    console.print(Text(f"  result     {summarize(definition.output_schema)}"))
    console.print()


def _print_commands(
    console: OutputConsole, url: str, definition: ServiceDefinition, *, key: Sequence[str]
) -> None:
    for command in example_commands(url, definition, key=key):
        # On one line and not indented, so that you can paste it.
        console.print(Text(command))
        console.print()


def example_commands(url: str, definition: ServiceDefinition, *, key: Sequence[str] = ()) -> list[str]:
    """Return shell commands that run a task: with `llamactl`, with `curl` and with Python.

    Args:
        url: The control plane.
        definition: The service.
        key: The arguments with which `curl` sends a key.
    """
    # Without a declared start event, the arguments are not known here.
    arguments = example(definition.input_schema) or {"KEY": "VALUE"}
    name = definition.service_name
    return [
        _run_command(url, name, arguments),
        _curl_command(url, name, arguments, key),
        _python_command(url, name, arguments),
    ]


def _run_command(url: str, name: str, arguments: Mapping[str, Any]) -> str:
    pairs = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()
    ]
    return shlex.join(["llamactl", *server_option(url), "run", name, *pairs])


def _curl_command(url: str, name: str, arguments: Mapping[str, Any], key: Sequence[str]) -> str:
    body = json.dumps({"service_name": name, "arguments": arguments})
    words = ["curl", "-s", shlex.quote(f"{url}/tasks?wait=30"), "-H", "'Content-Type: application/json'"]
    return " ".join([*words, *key, "-d", shlex.quote(body)])


def _python_command(url: str, name: str, arguments: Mapping[str, Any]) -> str:
    plain = all(key.isidentifier() and key not in _PARAMETERS_OF_RUN for key in arguments)
    given = (
        "".join(f", {key}={_literal(value)}" for key, value in arguments.items())
        if plain
        else f", arguments={arguments!r}"
    )
    client = f"Client({_literal(url)}).sync"
    program = f"from llama_deploy import Client; print({client}.run({_literal(name)}{given}))"
    return shlex.join(["python", "-c", program])


def _literal(value: object) -> str:
    """Return a Python literal; strings in double quotes, because the shell uses single quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
