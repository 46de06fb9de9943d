"""Every broker that the queues work with, under one form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, Self

from tests.servers import redis
from tests.servers.nats import NatsServer
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

_PATIENCE_SECONDS: Final = 10.0


class Broker(AbstractContextManager["Broker"], Protocol):
    """A server on one port for all its starts; a context manager that kills it at the end."""

    url: str
    """With which `config_from_url` finds it."""
    port: int

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""

    def kill(self) -> None:
        """End it as a power cut would."""

    def __enter__(self) -> Self: ...


class PatientRabbitMQServer(RabbitMQServer):
    """Is killed when it can find all its queues again, as it cannot within some seconds of making them.

    See "What is durable when" in `docs/queues/rabbitmq.md`.
    """

    def kill(self) -> None:
        """Wait for that, at most for some seconds, and end it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.remembers_all() and time.monotonic() < deadline:
            time.sleep(0.05)
        super().kill()


DURABLE: Final[Mapping[str, Callable[[Path], Broker]]] = {
    "redis": lambda folder: RedisServer(folder, *redis.DURABLE),
    "nats": NatsServer,
    "rabbitmq": PatientRabbitMQServer,
}
"""By the queue's type: with settings that keep what was accepted."""
FORGETFUL: Final[Mapping[str, tuple[Callable[[Path], Broker], Mapping[str, str]]]] = {
    "redis": (RedisServer, {}),
    "nats": (NatsServer, {"NATS_STORAGE": "memory"}),
}
"""With settings that lose it all when the broker dies, and environment variables for the queue."""
