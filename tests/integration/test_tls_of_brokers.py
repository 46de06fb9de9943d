"""Brokers and PostgreSQL over TLS, which require a certificate of their clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.errors import ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig
from llama_deploy.message_queues.nats import NatsMessageQueueConfig
from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.redis import RedisMessageQueueConfig
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from tests.servers.certificates import Authority, Certificate
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgreSQLServer
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.tls import TlsFront, nats_arguments, rabbitmq_settings

PATIENCE = 60.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def shown(authority: Authority) -> Certificate:
    return authority.issue("client")


@asynccontextmanager
async def nats(folder: Path, own: Certificate, authority: Authority) -> AsyncIterator[MessageQueueConfig]:
    with NatsServer(folder, *nats_arguments(folder, own, authority.file)) as server:
        yield NatsMessageQueueConfig(url=server.url)


@asynccontextmanager
async def rabbitmq(folder: Path, own: Certificate, authority: Authority) -> AsyncIterator[MessageQueueConfig]:
    port = free_port()
    with RabbitMQServer(folder, *rabbitmq_settings(port, own, authority.file)):
        yield RabbitMQMessageQueueConfig(url=f"amqps://127.0.0.1:{port}/")


@asynccontextmanager
async def redis(folder: Path, own: Certificate, authority: Authority) -> AsyncIterator[MessageQueueConfig]:
    with RedisServer(folder) as server:
        async with TlsFront(server.port, own, authority.file) as front:
            yield RedisMessageQueueConfig(url=f"rediss://127.0.0.1:{front.port}")


@pytest.mark.parametrize("broker", [nats, rabbitmq, redis])
async def test_a_queue_over_mutual_tls(
    broker: Any, authority: Authority, shown: Certificate, tmp_path: Path
) -> None:
    async with broker(tmp_path, authority.issue("broker"), authority) as base:

        def config(**fields: Any) -> MessageQueueConfig:
            changed: MessageQueueConfig = base.model_copy(update={"retry_seconds": 0, **fields})
            return changed

        with pytest.raises(LlamaDeployError, match=r"not trusted: .* set tls_ca to a PEM file"):
            await config(tls_cert=shown.certificate, tls_key=shown.key).connect()
        with pytest.raises(LlamaDeployError):
            await config(tls_ca=authority.file).connect()
        mutual = config(tls_ca=authority.file, tls_cert=shown.certificate, tls_key=shown.key)
        assert not [name for name in mutual.public_settings() if name.startswith("tls_")]
        async with await mutual.connect() as queue, await queue.subscribe("topic") as subscription:
            await queue.publish(QueueMessage(data={"n": 1}), "topic")
            (delivery,) = await subscription.receive(1)
            assert delivery.message.data == {"n": 1}
            await delivery.ack()


@pytest.mark.parametrize(
    "config",
    [
        NatsMessageQueueConfig(url="nats://one,nats://two", tls_ca="/nowhere.pem"),
        RabbitMQMessageQueueConfig(url="amqp://one", tls_ca="/nowhere.pem"),
        RedisMessageQueueConfig(url="redis://one", tls_ca="/nowhere.pem"),
        KafkaMessageQueueConfig(url="one:9092", tls_ca="/nowhere.pem"),
    ],
    ids=lambda config: str(config.type),
)
async def test_an_authority_turns_tls_on_and_must_be_there(config: MessageQueueConfig) -> None:
    with pytest.raises(ConfigError, match=r"tls_ca='/nowhere.pem' cannot be used"):
        await config.connect()


async def test_a_nats_server_without_tls_is_refused(authority: Authority, tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server, pytest.raises(ConfigError, match="does not use TLS"):
        await NatsMessageQueueConfig(url=server.url, tls_ca=authority.file).connect()


async def test_postgresql_over_mutual_tls(
    authority: Authority,
    shown: Certificate,
    postgresql_server: PostgreSQLServer,
    postgresql_uri: str,
    tmp_path: Path,
) -> None:
    own = authority.issue("database")
    async with TlsFront(postgresql_server.port, own, authority.file, is_postgresql=True) as front:
        uri = postgresql_uri.replace(f":{postgresql_server.port}/", f":{front.port}/")
        with pytest.raises(ConfigError, match=r"not trusted: .*; set sslrootcert in the address"):
            await PostgreSQLStateStore.connect(f"{uri}?sslrootcert={Authority(tmp_path).file}")
        ca = f"{uri}?sslrootcert={authority.file}"
        with pytest.raises((ConfigError, UnavailableError)):
            await PostgreSQLStateStore.connect(ca)
        mutual = f"{ca}&sslcert={shown.certificate}&sslkey={shown.key}"
        async with await PostgreSQLStateStore.connect(mutual) as store:
            await store.check_writable()
            front.cut()
            shown.certificate.write_text("half")
            await eventually(partial(can_write, store), seconds=PATIENCE)
    for query in ("sslmode=prefer&sslrootcert=a.pem", "sslkey=a.pem", "sslrootcert=/nowhere.pem"):
        with pytest.raises(ConfigError, match=r"need sslmode verify-full|without sslcert|/nowhere\.pem"):
            await PostgreSQLStateStore.connect(f"{postgresql_uri}?{query}")


async def can_write(store: PostgreSQLStateStore) -> bool:
    try:
        await store.check_writable()
    except UnavailableError:
        return False
    return True
