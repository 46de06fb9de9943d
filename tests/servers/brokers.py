"""Every broker that the queues work with, under one form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol, Self

from tests.servers import redis
from tests.servers.kafka import KafkaServer
from tests.servers.nats import NatsServer
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.sqs import SqsServer

_PATIENCE_SECONDS: Final = 60.0


class Broker(AbstractContextManager["Broker"], Protocol):
    """A server on one port for all its starts; a context manager that kills it at the end."""

    port: int

    @property
    def url(self) -> str:
        """With which `config_from_url` finds it."""

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""

    def kill(self) -> None:
        """End it as a power cut would."""

    def __enter__(self) -> Self: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """How to start a broker, and which settings the queue needs over it."""

    make: Callable[[Path], Broker]
    environment: Mapping[str, str] = field(default_factory=dict)


class PatientRabbitMQServer(RabbitMQServer):
    """Is killed when it can find all its queues again, as it cannot within some seconds of making them.

    See "What survives a failure" in `docs/operate/queues/rabbitmq.md`.
    """

    def kill(self) -> None:
        """Wait for that, at most for some seconds, and end it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.remembers_all() and time.monotonic() < deadline:
            time.sleep(0.05)
        super().kill()


_OF_TANSU: Final = {"KAFKA_POLL_SECONDS": "0.1"}
"""It looks for new messages after half of this only."""
DURABLE: Final[Mapping[str, Kind]] = {
    "redis": Kind(lambda folder: RedisServer(folder, *redis.DURABLE)),
    "nats": Kind(NatsServer),
    "rabbitmq": Kind(PatientRabbitMQServer),
    "kafka": Kind(partial(KafkaServer, durable=True), _OF_TANSU),
}
"""By the queue's type: with settings that keep what was accepted."""
FORGETFUL: Final[Mapping[str, Kind]] = {
    "redis": Kind(RedisServer),
    "nats": Kind(NatsServer, {"NATS_STORAGE": "memory"}),
    "kafka": Kind(KafkaServer, _OF_TANSU),
    "aws": Kind(SqsServer, {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}),
}
"""With settings that lose it all when the broker dies."""
FASTEST: Final[Mapping[str, Kind]] = {**DURABLE, "kafka": FORGETFUL["kafka"], "aws": FORGETFUL["aws"]}
"""One of each: what is durable of Kafka keeps its messages in an object store."""


def url_through(broker: Broker, port: int) -> str:
    """Return the URL of a broker behind a proxy on a port; it is to be asked for before the broker starts."""
    if isinstance(broker, KafkaServer):
        broker.advertised_port = port  # Kafka tells its clients where to go
    return broker.url.replace(f":{broker.port}", f":{port}")
