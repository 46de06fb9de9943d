"""Run a command until the user or the system stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any, Final

from llama_deploy.cli.event_loop import EventLoop, Threads
from llama_deploy.cli.output import note
from llama_deploy.cli.supervising import StopRequests
from llama_deploy.deploy.garbage import seldom_collecting
from llama_deploy.supervisor.link import SupervisorLink

logger = logging.getLogger(__name__)

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""


def run_until_stopped(
    serving: Coroutine[Any, Any, None], *, loop: EventLoop, link: SupervisorLink | None = None
) -> None:
    """Run `serving` on an event loop until it ends, or until Ctrl-C or SIGTERM shuts it down.

    The first signal cancels it, and services drain. A second Ctrl-C cancels it again, and services hand back
    their tasks. A third one exits at once; the tasks move to other instances when the leases expire.

    What ends the loop in another task, such as `sys.exit()` in one that a step has left behind, ends that
    task only.

    Args:
        serving: What to run.
        loop: The event loop.
        link: The link to the supervisor of this process, which tells when to stop. None: it has none.
    """
    with asyncio.Runner(loop_factory=loop.factory) as runner, seldom_collecting():
        running = runner.get_loop()
        running.set_default_executor(Threads(thread_name_prefix="asyncio"))
        main = running.create_task(_until_stopped(serving, link))
        while not main.done():
            try:
                running.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt) as exc:
                if main.done():
                    raise
                logger.exception(
                    "a task that a workflow has started raised %s; it has ended, and this process goes on",
                    type(exc).__name__,
                    extra={"action": "exit_in_task"},
                )


async def _until_stopped(serving: Coroutine[Any, Any, None], link: SupervisorLink | None) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(serving)

    def stop(_: object) -> None:
        task.cancel()

    if link is None:
        stops = StopRequests(stop, note=note)
        loop.add_signal_handler(signal.SIGINT, stops.interrupt)
        loop.add_signal_handler(signal.SIGTERM, stops.terminate)
    else:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        link.on_stop(lambda how: loop.call_soon_threadsafe(stop, how))
    try:
        await asyncio.wait({task})
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if not task.cancelled():
        task.result()
    if link is None:
        note("Stopped.")
