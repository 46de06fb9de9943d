"""Settings of the queue over Kafka."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues import KafkaMessageQueueConfig


@pytest.mark.parametrize(
    ("settings", "servers", "is_secure"),
    [
        ({}, ["localhost:9092"], False),
        ({"url": "broker"}, ["broker:9092"], False),
        ({"url": "broker:1,other:2"}, ["broker:1", "other:2"], False),
        ({"url": "kafka://broker,other:2/", "port": 3}, ["broker:3", "other:2"], False),
        ({"url": "kafkas://broker"}, ["broker:9092"], True),
        ({"url": "kafkas://broker", "secure": False}, ["broker:9092"], False),
        ({"host": "there", "port": 7}, ["there:7"], False),
        ({"url": "kafka://[::1],[::2]:5"}, ["[::1]:9092", "[::2]:5"], False),
        ({"port": "tcp://10.0.0.1:9092"}, ["localhost:9092"], False),
    ],
)
def test_where_the_brokers_are(settings: dict[str, Any], servers: list[str], *, is_secure: bool) -> None:
    config = KafkaMessageQueueConfig(**settings)
    assert (config.servers, config.is_secure) == (servers, is_secure)
    again = KafkaMessageQueueConfig(**config.public_settings())
    assert (again.servers, again.is_secure) == (servers, is_secure)


@pytest.mark.parametrize(
    "url", ["", "http://broker", "broker:port", "broker:0", "a,,b", "broker?x=1", "kafka://"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="host:port"):
        KafkaMessageQueueConfig(url=url)


@pytest.mark.parametrize("url", ["kafkas://me:hush%2Fhush@broker,other", "me:hush%2Fhush@broker,other"])
def test_credentials_leave_the_url_and_are_not_shown(url: str) -> None:
    config = KafkaMessageQueueConfig(url=url, sasl_mechanism="SCRAM-SHA-512")
    options = config.connection_options
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "hush/hush")
    assert options["security_protocol"] == ("SASL_SSL" if "kafkas" in url else "SASL_PLAINTEXT")
    assert ("ssl_context" in options) == ("kafkas" in url)
    assert not config.public_settings().keys() & {"username", "password"}
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.public_settings())):
        assert "hush" not in shown


def test_a_field_goes_before_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "from the environment")
    config = KafkaMessageQueueConfig(url="me:hush@broker", username="you", password="other")
    options = config.connection_options
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("you", "other")
    assert KafkaMessageQueueConfig(url="me@broker").password is not None


async def test_an_authority_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        await KafkaMessageQueueConfig(url="kafkas://broker", tls_ca="/nowhere.pem").connect()
