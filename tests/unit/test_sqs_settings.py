"""Settings of a queue on Amazon SQS, and the names of its queues."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.message_queues.aws import AWSMessageQueueConfig
from llama_deploy.message_queues.aws.topics import common_prefix, queue_name

SECRET = "hush/hush"  # noqa: S105 - of a test
TOPICS = st.text(alphabet="ab-_.% ü", min_size=1, max_size=12) | st.text(min_size=1, max_size=120)


def test_the_defaults_are_those_of_the_service() -> None:
    config = AWSMessageQueueConfig()
    assert (config.type, config.aws_region, config.endpoint_url) == ("aws", "us-east-1", None)
    assert config.client_options["aws_access_key_id"] is None


def test_a_url_names_a_region() -> None:
    config = AWSMessageQueueConfig(url="aws://eu-central-1")
    assert (config.aws_region, config.endpoint_url, config.url) == ("eu-central-1", None, None)


def test_a_url_names_an_endpoint() -> None:
    config = AWSMessageQueueConfig(url="aws+http://127.0.0.1:5000/path?region=eu-west-1")
    assert (config.aws_region, config.endpoint_url) == ("eu-west-1", "http://127.0.0.1:5000/path")


def test_fields_go_before_the_url() -> None:
    config = AWSMessageQueueConfig(url="aws+https://sqs.example?region=a", aws_region="b")
    assert (config.aws_region, config.endpoint_url) == ("b", "https://sqs.example")


def test_credentials_in_a_url_become_fields_and_are_never_shown() -> None:
    config = AWSMessageQueueConfig(url="aws://mykey:hush%2Fhush@eu-west-1", aws_session_token="hush too")
    assert config.client_options == {
        "region_name": "eu-west-1",
        "endpoint_url": None,
        "aws_access_key_id": "mykey",
        "aws_secret_access_key": SECRET,
        "aws_session_token": "hush too",
    }
    shown = f"{config!r} {config} {config.public_settings()}"
    assert "hush" not in shown + config.model_dump_json()
    assert "mykey" not in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"url": f"http://me:{SECRET}@host"},
        {"url": "aws+http://"},
        {"url": f"aws://me:{SECRET}@Region"},
        {"aws_region": "hush/"},
        {"endpoint_url": "http://host:hush"},
        {"endpoint_url": "http://host?token=hush"},
        {"endpoint_url": f"http://me:{SECRET}@host"},
        {"endpoint_url": "host:80"},
        {"aws_secret_access_key": SECRET},
        {"aws_access_key_id": "me", "aws_secret_access_key": [SECRET]},
        {"queue_prefix": "a.b"},
        {"wait_seconds": 21},
    ],
)
def test_what_cannot_work_is_refused_without_a_secret(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError) as refused:
        AWSMessageQueueConfig(**fields)  # type: ignore[arg-type]
    assert "hush" not in str(refused.value)


def test_the_environment_names_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert AWSMessageQueueConfig().aws_region == "ap-south-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert AWSMessageQueueConfig().aws_region == "eu-north-1"
    assert AWSMessageQueueConfig(aws_region="us-west-2").aws_region == "us-west-2"


def test_credentials_of_the_environment_are_left_to_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert AWSMessageQueueConfig().aws_access_key_id is None


def test_its_public_settings_build_it_again() -> None:
    config = AWSMessageQueueConfig(url="aws+http://host:1?region=r", queue_prefix="p", wait_seconds=3)
    assert AWSMessageQueueConfig(**config.public_settings()) == config


def test_a_usual_topic_can_be_read_in_its_queue() -> None:
    topic = "llama_deploy.my-service.01a2b3c4-0000-7000-8000-000000000000"
    assert queue_name("x-", topic, "default") == f"x-{topic.replace('.', '--')}"


@given(st.lists(TOPICS, unique=True, max_size=20), st.sampled_from(["", "p-", "a" * 20]))
def test_each_group_of_each_topic_has_a_queue_of_its_own(topics: list[str], prefix: str) -> None:
    groups = ["default", "Default", "a", "a" * 100]
    names = [queue_name(prefix, topic, group) for topic in topics for group in groups]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) and name.startswith(prefix) for name in names)


@given(TOPICS, st.lists(TOPICS, min_size=1, max_size=5), st.sampled_from(["", "p-", "a" * 20]))
def test_the_queues_beside_a_topic_begin_as_its_own_does(parent: str, ends: list[str], prefix: str) -> None:
    topics = [f"{parent}.{end.replace('.', '-')}" for end in ends]
    heads = {common_prefix(prefix, topic) for topic in topics}
    assert len(heads) == 1
    assert all(queue_name(prefix, topic, "default").startswith((*heads,)) for topic in topics)


def test_queues_of_other_services_are_not_beside_a_usual_topic() -> None:
    assert common_prefix("x-", "llama_deploy.my-service.01a2b3c4") == "x-llama_deploy--my-service--"
