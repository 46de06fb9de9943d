"""Run several parts until one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llama_deploy.services.background import end


async def run_together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run `parts` until one of them ends, then cancel the others and wait for them.

    Raises:
        Exception: The error of the part that ended first.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
    finally:
        await end(tasks)
    for task in failed:
        task.result()
