"""A message queue is found by the scheme of its URL, whose credentials nobody sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from llama_deploy.cli.place import Place
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.errors import ConfigError
from llama_deploy.message_queues import (
    AWSMessageQueueConfig,
    KafkaMessageQueueConfig,
    MessageQueueConfig,
    NatsMessageQueueConfig,
    RabbitMQMessageQueueConfig,
    RedisMessageQueueConfig,
    SimpleMessageQueueConfig,
    config_from_settings,
    config_from_url,
)

# Where the credentials go, and the field that their secret becomes.
FORMS: Final = {
    "redis://{}@host:6379/1": "password",
    "amqp://{}@host/vhost": "password",
    "nats://{}@host,nats://other": "password",
    "kafka://{}@host:9092,other": "password",
    "aws://{}@eu-west-1": "aws_secret_access_key",
    "aws+http://{}@127.0.0.1:5000?region=x": "aws_secret_access_key",
}
SECRETS: Final = st.lists(
    st.sampled_from(["hush", "4711", "://", *"/#?@:%,&=[] é"]), min_size=1, max_size=8
).map("".join)


def shown_of(config: MessageQueueConfig) -> str:
    texts = [
        repr(config),
        str(config),
        config.address,
        str(getattr(config, "url", "")),
        config.model_dump_json(),
    ]
    return " ".join([*texts, str(config.public_settings())])


def secret_of(config: MessageQueueConfig, name: str) -> str:
    value = getattr(config, name)
    assert isinstance(value, SecretStr)
    return value.get_secret_value()


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
        ("sqs://KEY:secret@Region", "sqs:// address of the message queue: url: "),
        ("nats://broker?token=secret", "nats:// address .* the query may have no parameters"),
        ("amqp://broker/?password=secret", "amqp:// address .* the query may have cafile"),
        ("kafka://ann:secret@one:9092,bob:secret@two", "write the same credentials for each host"),
        ("nats://one,ann:secret@two", "write the same credentials for each host"),
        ("redis://broker?password=sec@secret", "redis:// address .* any @ after the host"),
        ("redis://:secret", "redis:// address .* a port is a number"),
        ("redis://ann:secret@broker:none", "redis:// address of the message queue: "),
    ],
)
def test_an_address_that_cannot_work_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config_from_url(url)
    assert "secret" not in str(caught.value)


@given(SECRETS, st.sampled_from(sorted(FORMS)))
@example("12/34", "redis://{}@host:6379/1")
@example("hush/4711#?", "aws+http://{}@127.0.0.1:5000?region=x")
def test_an_encoded_password_is_found_and_shown_nowhere(secret: str, form: str) -> None:
    config = config_from_url(form.format(f"me:{quote(secret, safe='')}"))
    assert secret_of(config, FORMS[form]) == secret
    assert not config.public_settings().keys() & config.credential_fields
    assert not [part for part in ("hush", "4711") if part in shown_of(config)]


@given(SECRETS, st.sampled_from(sorted(FORMS)), st.sampled_from(["", "me"]))
def test_a_raw_password_is_found_or_refused_and_shown_nowhere(secret: str, form: str, user: str) -> None:
    try:
        config = config_from_url(form.format(f"{user}:{secret}"))
    except ConfigError as exc:
        shown = str(exc)
    else:
        shown = shown_of(config)
    assert not [part for part in ("hush", "4711") if part in shown]


@pytest.mark.parametrize("form", FORMS)
def test_a_raw_password_is_found_where_it_is_unambiguous(form: str) -> None:
    secret = "a/b#c?d@e:f"  # noqa: S105 - of a test
    assert secret_of(config_from_url(form.format(f"me:{secret}")), FORMS[form]) == secret


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("kafka://me:a@one:9092,me:a@two:1", "kafka://one:9092,two:1"),
        ("kafka://me:a@one:9092,two:1", "kafka://one:9092,two:1"),
        ("nats://me:a@one,nats://me:a@two", "nats://one,nats://two"),
        ("nats://me:a@one,two:1", "nats://one,nats://two:1"),
    ],
)
def test_several_hosts_with_the_same_credentials_are_all_kept(url: str, hosts: str) -> None:
    config = config_from_url(url)
    assert config.public_settings()["url"] == hosts
    assert {name: str(value) for name, value in config.private_settings().items()} == {
        "username": "me",
        "password": "**********",
    }


@pytest.mark.parametrize(
    ("environment", "url", "address", "fields"),
    [
        (
            {
                "REDIS_HOST": "other",
                "REDIS_PORT": "1",
                "REDIS_DB": "5",
                "REDIS_PASSWORD": "b",
                "REDIS_SSL": "1",
            },
            "redis://me:a@host:2",
            "redis://host:2/5",
            {"username": "me", "password": SecretStr("a")},
        ),
        ({"REDIS_HOST": "other"}, "redis://", "redis://other:6379/0", {}),
        (
            {
                "RABBITMQ_HOST": "other",
                "RABBITMQ_VHOST": "b",
                "RABBITMQ_SECURE": "0",
                "RABBITMQ_USERNAME": "you",
            },
            "amqps://host/a",
            "amqps://host:5671/a",
            {"username": "you"},
        ),
        (
            {"KAFKA_HOST": "other", "KAFKA_PORT": "1", "KAFKA_PASSWORD": "b"},
            "kafka://me:a@one,two:2",
            "kafka://one:1,two:2",
            {"password": SecretStr("a")},
        ),
        (
            {"NATS_TOKEN": "b", "NATS_URL": "nats://other"},
            "nats://me:a@host",
            "nats://host",
            {"username": "me", "token": None},
        ),
        ({"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "x"}, "sqs://eu-west-1", "aws://eu-west-1", {}),
        ({"AWS_DEFAULT_REGION": "us-east-1"}, "sqs://eu-west-1", "aws://eu-west-1", {}),
        (
            {
                "AWS_REGION": "eu-west-1",
                "AWS_SQS_ENDPOINT_URL": "http://other",
                "AWS_SQS_MAX_DELIVERIES": "3",
            },
            "aws+http://host:1",
            "aws+http://host:1?region=eu-west-1",
            {"max_deliveries": 3},
        ),
    ],
)
def test_what_the_url_says_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    url: str,
    address: str,
    fields: dict[str, Any],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = config_from_url(url)
    assert config.address == address
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize("name", ["RABBITMQ", "REDIS", "KAFKA"])
def test_what_kubernetes_sets_for_a_service_is_no_port(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:5672")
    assert getattr(config_from_url(f"{name.lower()}://host"), "port", 0) is None


@pytest.mark.parametrize(
    ("config_class", "name", "port"),
    [
        (SimpleMessageQueueConfig, "SIMPLE_MESSAGE_QUEUE_PORT", 8001),
        (ControlPlaneConfig, "CONTROL_PLANE_PORT", 8000),
        (ControlPlaneConfig, "CONTROL_PLANE_INTERNAL_PORT", None),
    ],
)
def test_what_kubernetes_sets_for_one_of_our_own_services_leaves_the_default(
    monkeypatch: pytest.MonkeyPatch, config_class: type[BaseSettings], name: str, port: int | None
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    field = name.removeprefix(config_class.model_config.get("env_prefix", "")).lower()
    assert getattr(config_class(), field) == port
    monkeypatch.setenv(name, "65536")
    with pytest.raises(ValidationError, match=field):
        config_class()


@pytest.mark.parametrize(
    "config_class", [RabbitMQMessageQueueConfig, RedisMessageQueueConfig, KafkaMessageQueueConfig]
)
@pytest.mark.parametrize("port", [0, 65536, "hush"])
def test_a_port_that_is_none_is_refused(config_class: type[MessageQueueConfig], port: object) -> None:
    with pytest.raises(ValidationError, match="port") as refused:
        config_class.model_validate({"port": port})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("told", "environment"),
    [
        (RabbitMQMessageQueueConfig(url="amqp://told"), {"RABBITMQ_URL": "amqp://me:hush@own"}),
        (KafkaMessageQueueConfig(url="told"), {"KAFKA_URL": "kafka://me:hush@own"}),
        (NatsMessageQueueConfig(url="nats://told"), {"NATS_URL": "nats://me:hush@own"}),
        (
            RedisMessageQueueConfig(url="redis://told"),
            {"REDIS_URL": "redis://:hush@own", "REDIS_USERNAME": "me"},
        ),
        (AWSMessageQueueConfig(aws_region="told"), {"AWS_SQS_URL": "aws+http://me:hush@own?region=own"}),
    ],
)
def test_told_settings_get_the_credentials_of_a_url_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, told: MessageQueueConfig, environment: dict[str, str]
) -> None:
    settings = told.public_settings()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = config_from_settings(settings)
    assert config.address == told.address
    found = {
        getattr(value, "get_secret_value", value.__str__)() for value in config.private_settings().values()
    }
    assert found == {"me", "hush"}


def test_told_credentials_stay_and_an_environment_that_cannot_work_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_URL", "kafka+ssl://me:hush@own")
    assert config_from_settings({"type": "kafka", "url": "told"}).private_settings() == {}
    monkeypatch.setenv("KAFKA_URL", "me:hush@own")
    config = config_from_settings({"type": "kafka", "url": "told", "username": "you", "password": "b"})
    assert config.private_settings() == {"username": "you", "password": SecretStr("b")}


def test_the_addresses_of_stores_and_queues_are_not_shown() -> None:
    uri = "postgresql://me:hush@host/database"
    place = Place(
        data_dir=Path(),
        host="h",
        port=1,
        queue_port=2,
        allow_remote=False,
        queue="redis://:hush@h",
        store=uri,
    )
    shown = f"{ControlPlaneConfig(state_store_uri=uri)!r} {place!r}"
    with pytest.raises(ValidationError) as refused:
        ControlPlaneConfig(state_store_uri=[uri])
    assert "hush" not in f"{shown} {refused.value}"
