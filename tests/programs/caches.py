"""Prints, logs, and keeps what it has computed in a global cache and in `functools.cache`."""

import functools
import logging

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

logging.basicConfig(level=logging.INFO)
logger = logging.getLogger("caches")

CACHE: dict[str, int] = {}


@functools.cache
def square(number: int) -> int:
    print("squaring", number)
    return number * number


class Computed(Event):
    key: str


class CachedFlow(Workflow):
    @step
    async def compute(self, ev: StartEvent) -> Computed:
        logger.info("computing %s", ev.number)
        key = f"square of {ev.number}"
        if key not in CACHE:
            CACHE[key] = square(ev.number)
        return Computed(key=key)

    @step
    async def look_up(self, ev: Computed) -> StopEvent:
        await call("caches/look_up")
        # Another process may have computed it.
        number = CACHE.get(ev.key) or square(int(ev.key.rpartition(" ")[2]))
        print(ev.key, "is", number)
        return StopEvent(result=number)


cached = CachedFlow(verbose=True)
