"""A message queue is found by the scheme of its URL."""

from __future__ import annotations

from typing import Any

import pytest

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues import config_from_settings, config_from_url


@pytest.mark.parametrize(
    ("url", "kind", "fields"),
    [
        ("simple://queue.internal:9001", "simple", {"host": "queue.internal", "port": 9001}),
        ("simple://", "simple", {"host": "127.0.0.1", "port": 8001}),
        ("redis://broker:6380/2", "redis", {"url": "redis://broker:6380/2"}),
        ("rediss://broker", "redis", {"url": "rediss://broker"}),
        ("valkey://broker", "redis", {"url": "redis://broker"}),
        ("rabbitmq://ann:secret@broker/team", "rabbitmq", {"url": "amqp://broker/team", "username": "ann"}),
        ("amqps://broker/", "rabbitmq", {"url": "amqps://broker/"}),
        ("kafka://broker", "kafka", {"url": "kafka://broker"}),
        ("sqs://eu-west-1", "aws", {"aws_region": "eu-west-1", "endpoint_url": None}),
        ("aws+http://127.0.0.1:5000?region=x", "aws", {"endpoint_url": "http://127.0.0.1:5000"}),
        ("nats://one:4222,nats://two:4222", "nats", {"url": "nats://one:4222,nats://two:4222"}),
    ],
)
def test_the_scheme_names_the_backend(url: str, kind: str, fields: dict[str, Any]) -> None:
    config = config_from_url(url)
    assert config.public_settings()["type"] == kind
    assert {name: getattr(config, name) for name in fields} == fields
    assert "secret" not in config.address
    assert type(config_from_settings(config.public_settings())) is type(config)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("broker:secret", "begins with one of: .*redis://"),
        ("pigeon://secret@loft", "'pigeon'; known are: .*rabbitmq"),
        ("simple://host:many", "simple:// address of the message queue: "),
        ("amqp://ann:secret@:0/", "amqp:// address of the message queue: url: "),
        ("redis://ann:secret@broker:none", "redis:// address of the message queue: "),
    ],
)
def test_an_address_that_cannot_work_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config_from_url(url)
    assert "secret" not in str(caught.value)
