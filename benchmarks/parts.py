"""What runs in the processes that are measured: `python -m benchmarks.parts queue|core|services ...`.

A part ends on SIGTERM, or when its standard input ends, so that none outlives the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.workloads import WORKFLOWS
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import deploy_core, deploy_workflow
from llama_deploy.message_queues import SimpleMessageQueueConfig, config_from_url
from llama_deploy.services import WorkflowServiceConfig

HOST: Final = "127.0.0.1"


def queue(options: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Run a simple queue that keeps its messages."""
    return deploy_core(
        message_queue_config=SimpleMessageQueueConfig(
            host=HOST, port=options.port, journal_path=options.journal
        ),
        disable_control_plane=True,
    )


def core(options: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Run the control plane, and a simple queue unless the queue runs elsewhere."""
    return deploy_core(
        control_plane_config=ControlPlaneConfig(
            host=HOST,
            port=options.port,
            state_store_uri=options.store,
            lease_seconds=options.lease_seconds,
        ),
        message_queue_config=config_from_url(options.queue),
        disable_message_queue=options.queue_elsewhere,
    )


async def services(options: argparse.Namespace) -> None:
    """Run an instance of each of the named services."""
    async with asyncio.TaskGroup() as group:
        for name, port in options.service:
            config = WorkflowServiceConfig(
                host=HOST,
                port=port,
                service_name=name,
                max_concurrent_tasks=options.max_concurrent_tasks,
                durability=WORKFLOWS[name].durability,
            )
            group.create_task(
                deploy_workflow(
                    WORKFLOWS[name].workflow(timeout=None),
                    workflow_config=config,
                    control_plane_config=ControlPlaneConfig(host=HOST, port=options.port),
                    message_queue_config=config_from_url(options.queue) if options.queue else None,
                )
            )


def _service(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    return name, int(port)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    queue_parser = parts.add_parser("queue")
    queue_parser.add_argument("--port", type=int, required=True)
    queue_parser.add_argument("--journal", type=Path, required=True)
    queue_parser.set_defaults(run=queue)
    core_parser = parts.add_parser("core")
    core_parser.add_argument("--port", type=int, required=True)
    core_parser.add_argument("--queue", required=True, help="a URL")
    core_parser.add_argument("--queue-elsewhere", action="store_true")
    core_parser.add_argument("--store", required=True, help="a URI")
    core_parser.add_argument("--lease-seconds", type=float, required=True)
    core_parser.set_defaults(run=core)
    services_parser = parts.add_parser("services")
    services_parser.add_argument("--port", type=int, required=True, help="the control plane's port")
    services_parser.add_argument("--queue", help="a URL; without it, the control plane is asked")
    services_parser.add_argument("--max-concurrent-tasks", type=int, required=True)
    services_parser.add_argument("service", type=_service, nargs="+", help="NAME:PORT")
    services_parser.set_defaults(run=services)
    return parser.parse_args()


def _end_with_standard_input() -> None:
    # Not by sys.stdin, whose lock the interpreter wants when it ends by itself.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def main() -> None:
    """Run the part until it is told to end."""
    options = _parse()
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    await options.run(options)


if __name__ == "__main__":
    uvloop.run(main())
