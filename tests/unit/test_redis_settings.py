"""Settings of the queue on Redis: what a URL says, and what nobody may see."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from llama_deploy.message_queues import RedisMessageQueueConfig


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.booleans())
def test_credentials_of_a_url_become_fields_and_are_never_shown(secret: str, in_query: bool) -> None:  # noqa: FBT001
    secret = f"hush{secret}hush"
    quoted = quote(secret, safe="")
    url = f"redis://h:1/2?password={quoted}&username=me" if in_query else f"redis://me:{quoted}@h:1/2"
    config = RedisMessageQueueConfig(url=url)
    assert config.connection_options == {
        "host": "h",
        "port": 1,
        "db": 2,
        "username": "me",
        "password": secret,
    }
    assert config.url == "redis://h:1/2"
    shown = [repr(config), str(config.public_settings()), config.model_dump_json()]
    assert "hush" not in " ".join(shown)
    assert "me" not in config.public_settings().values()


def test_fields_go_before_the_url() -> None:
    config = RedisMessageQueueConfig(
        url="redis://me:a@one:1/1", host="two", port=2, db=2, username="you", password="b", ssl=True
    )
    assert config.connection_options == {
        "host": "two",
        "port": 2,
        "db": 2,
        "username": "you",
        "password": "b",
        "connection_class": SSLConnection,
        "ssl_check_hostname": True,
    }
    assert RedisMessageQueueConfig(url="rediss://one", ssl=False).connection_options == {"host": "one"}


def test_the_scheme_says_how_to_connect() -> None:
    assert RedisMessageQueueConfig(url="valkeys://h").connection_options["connection_class"] is SSLConnection
    options = RedisMessageQueueConfig(url="unix:///run/valkey?db=3").connection_options
    assert options == {"connection_class": UnixDomainSocketConnection, "path": "/run/valkey", "db": 3}


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "valkey://me:hush@h:1")
    monkeypatch.setenv("REDIS_DB", "4")
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")  # of a service named redis in Kubernetes
    config = RedisMessageQueueConfig()
    assert config.url == "redis://h:1"
    assert config.connection_options["port"] == 1
    assert config.connection_options["db"] == 4
    assert "hush" not in repr(config)


def test_public_settings_with_a_password_of_ones_own_lead_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = RedisMessageQueueConfig(url="redis://me:hush@h:1", host="other", visibility_timeout=7)
    monkeypatch.setenv("REDIS_USERNAME", "me")
    monkeypatch.setenv("REDIS_PASSWORD", "hush")
    monkeypatch.setenv("REDIS_HOST", "elsewhere")
    assert RedisMessageQueueConfig(**given.public_settings()) == given


@pytest.mark.parametrize("url", ["http://me:hush@h", "me:hush@h", "redis://h?ssl_password=hush", "redis://["])
def test_a_url_that_cannot_work_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RedisMessageQueueConfig(url=url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("query", ["nonsense=hush", "hush", "db=hush", "db=1#hush"])
def test_an_argument_that_no_connection_takes_is_refused_without_being_shown(query: str) -> None:
    with pytest.raises(ValidationError, match="query") as refused:
        RedisMessageQueueConfig(url=f"redis://h?{query}")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "redis://localhost:6379/0"),
        ({"url": "rediss://me:hush@h:1/2"}, "rediss://h:1/2"),
        (
            {"url": "redis://me:hush@h:1/2", "host": "::1", "port": 3, "db": 4, "ssl": True},
            "rediss://[::1]:3/4",
        ),
        ({"url": "unix:///run/valkey?db=3", "host": "h", "port": 1, "ssl": True}, "unix:///run/valkey?db=3"),
    ],
)
def test_the_address_is_that_of_the_connection(settings: dict[str, Any], address: str) -> None:
    config = RedisMessageQueueConfig(**settings)
    assert config.address == address
    if "path" in config.connection_options:
        assert not {"host", "port"} & config.connection_options.keys()


def test_the_driver_is_imported_when_it_is_asked_for() -> None:
    program = """
import sys
import llama_deploy.message_queues as queues
assert "redis" not in sys.modules
queues.RedisMessageQueueConfig
assert "redis" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
