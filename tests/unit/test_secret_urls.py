"""No error, traceback or `repr` shows the secret of an address, however malformed the address is."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.cli.place import Place
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.queue_registry import config_from_url
from llama_deploy.state_stores.store_registry import open_state_store, stored_schema_revision
from llama_deploy.web.connection_settings import ConnectionSettings

SECRET = "s3cret"  # noqa: S105
STORES = [
    "postgresql://user:s3cret word@host:notaport/db",
    "postgresql://user:s3cret@host:99999999999/db",
    "postgresql://user:p@s3cret@127.0.0.1:1/db",
    "postgresql://user:p/s3cret@127.0.0.1:1/db",
    "postgresql://user:p?s3cret@127.0.0.1:1/db",
    "postgresql://user:p#s3cret@127.0.0.1:1/db",
    "postgresql://user:s3cret@[::1/db",
    "postgresql://user:p@127.0.0.1:1/db?s3cret=1",
    "postgresql://user:p@127.0.0.1:1/db?password=s3cret",
    "postgresql://user:p@127.0.0.1:1/db?sslmode=s3cret",
    "postgresql:// user:s3cret@127.0.0.1:1/db",
    "postgresql+asyncpg://user:s3cret@127.0.0.1:1/db",
    "user:s3cret@host://db",
    "user:s3cret@host/db",
    "mongodb+srv://user:s3cret@host/db",
    "sqlite:////tmp/x?key=s3cret",
    "sqlite:////tmp/x?s3cret",
    "sqlite:////tmp/x?s3cret=1",
    "sqlite://user:s3cret@host/x",
    "sqlite://user:p@s3cret@/x",
    "sqlite:///\x00s3cret",
]
QUEUES = [
    *(
        f"{scheme}://{rest}"
        for scheme in ("redis", "rabbitmq", "amqp", "nats", "kafka", "aws", "simple")
        for rest in (
            "user:s3cret word@host:notaport/x",
            "user:p@s3cret@host:notaport/x",
            "user:p?s3cret@host:notaport/x",
            "user:p#s3cret@host:99999999/x",
            "user:p@host/x?s3cret=1&other=s3cret",
            "user:s3cret@[::1",
        )
    ),
    "user:s3cret@host://x",
    "user:s3cret@host",
]


def everything(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc)) + repr(exc) + str(exc)


def shown_of_queue(url: str) -> str:
    try:
        config = config_from_url(url)
    except LlamaDeployError as exc:
        return everything(exc)
    return f"{config!r} {config.public_settings()}"


@pytest.mark.parametrize("uri", STORES)
async def test_the_address_of_a_store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (open_state_store, stored_schema_revision):
        with pytest.raises(LlamaDeployError) as caught:
            await call(uri)
        assert SECRET not in everything(caught.value)


@pytest.mark.parametrize("uri", [uri for uri in STORES if "\0" not in uri])
def test_settings_and_places_show_no_address(uri: str) -> None:
    settings = ControlPlaneConfig(state_store_uri=uri)
    place = Place(data_dir=Path(), host="h", port=1, queue_port=2, allow_remote=False, queue=uri, store=uri)
    shown: Any = [repr(settings), settings.public_settings(), repr(place), place.data]
    assert SECRET not in str(shown)


@pytest.mark.parametrize("url", QUEUES)
def test_the_address_of_a_queue(url: str) -> None:
    assert SECRET not in shown_of_queue(url)


@pytest.mark.parametrize(
    "url", [*STORES, *QUEUES, "http://user:s3cret@host:x", "http://h:s3cret", "http://h?s3cret"]
)
def test_the_address_of_a_server(url: str) -> None:
    with pytest.raises(LlamaDeployError) as caught:
        ConnectionSettings.of(url)
    assert SECRET not in everything(caught.value)


def test_credentials_of_a_server_are_sent_and_not_shown() -> None:
    settings = ConnectionSettings.of("http://user:s3cret@host:1")
    assert settings.headers_for(settings.urls[0])["Authorization"].startswith("Basic ")
    assert SECRET not in repr(settings) + str(list(settings.urls))
