"""What runs in the processes that are measured: `python -m benchmarks.parts core|services ...`.

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
from typing import Any, Final

import uvloop

from benchmarks.workloads import WORKFLOWS
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import deploy_core, deploy_workflow
from llama_deploy.message_queues import SimpleMessageQueueConfig
from llama_deploy.services import WorkflowServiceConfig

HOST: Final = "127.0.0.1"


def core(options: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Run the queue and the control plane."""
    return deploy_core(
        control_plane_config=ControlPlaneConfig(
            host=HOST,
            port=options.port,
            state_store_uri=f"sqlite:///{options.database}",
            lease_seconds=options.lease_seconds,
        ),
        message_queue_config=SimpleMessageQueueConfig(host=HOST, port=options.queue_port),
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
                )
            )


def _service(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    return name, int(port)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the control plane's port")
    parts = parser.add_subparsers(required=True)
    core_parser = parts.add_parser("core")
    core_parser.add_argument("--queue-port", type=int, required=True)
    core_parser.add_argument("--database", required=True)
    core_parser.add_argument("--lease-seconds", type=float, required=True)
    core_parser.set_defaults(run=core)
    services_parser = parts.add_parser("services")
    services_parser.add_argument("--max-concurrent-tasks", type=int, required=True)
    services_parser.add_argument("service", type=_service, nargs="+", help="NAME:PORT")
    services_parser.set_defaults(run=services)
    return parser.parse_args()


def _end_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


async def main() -> None:
    """Run the part until it is told to end."""
    options = _parse()
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    await options.run(options)


if __name__ == "__main__":
    uvloop.run(main())
