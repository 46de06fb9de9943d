"""Settings of the simple queue, for its server and for its clients."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_queue import BrokerQueueConfig
from llama_deploy.message_queues.simple.limits import BrokerLimits
from llama_deploy.types.ports import BoundPort
from llama_deploy.web.connection_limit import DEFAULT_MAX_CONNECTIONS
from llama_deploy.web.edge.body_budget import DEFAULT_MAX_TOTAL_BODY_BYTES
from llama_deploy.web.edge.body_limit import DEFAULT_MAX_BODY_BYTES
from llama_deploy.web.edge.host_settings import TrustedHostNames
from llama_deploy.web.edge.server_key import ServerKey
from llama_deploy.web.server_tls import TlsFiles

_CLIENT_KWARGS = frozenset(inspect.signature(aiohttp.ClientSession).parameters) - {"connector", "base_url"}


class SimpleMessageQueueConfig(BrokerQueueConfig):
    """Settings of the simple queue. Environment variables begin with `SIMPLE_MESSAGE_QUEUE_`."""

    model_config = SettingsConfigDict(env_prefix="SIMPLE_MESSAGE_QUEUE_")

    type: Literal["simple"] = "simple"
    """Identifies the backend."""
    host: str = "127.0.0.1"
    """Where the server listens, and where its clients find it."""
    port: BoundPort = 8001
    """The server's port. 0, for a server: the system chooses one."""
    client_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """For a client: `headers`, `cookies`, `trust_env` and other arguments of `aiohttp.ClientSession`;
    `timeout`, the seconds for an answer, or None; `verify`, False to accept every certificate, the path of
    a file with certificate authorities, or an `ssl.SSLContext`; `cert`, the path of a client certificate with
    its key, or the paths of both. Never leaves the process."""
    api_key: ServerKey | None = Field(default=None, repr=False)
    """The key that callers of the server need, and that its clients send: at least 32 characters. None: a
    server admits everybody, unless it runs beside a control plane with `authentication`, whose keys it then
    accepts. Never leaves the process but to the server."""
    allow_remote: bool = False
    """Whether a server without `api_key` may listen on an address that other machines can reach."""
    trusted_hosts: TrustedHostNames = Field(default_factory=list)
    """For a server: further names under which it is reached, such as `queue.example.com`; `*` is every name.
    A request for another host gets 421. IP addresses, `localhost` and `host` need no entry."""
    use_ssl: bool = False
    """For a client: speak HTTPS, to a server with `tls_cert` or to a proxy in front of one."""
    tls_cert: Path | None = None
    """For a server: a PEM file with its certificate, followed by those of the authorities between it and a
    trusted one. With it and `tls_key` it speaks TLS. A changed file is used without a restart."""
    tls_key: Path | None = None
    """For a server: a PEM file with the key of `tls_cert`, not encrypted."""
    tls_client_ca: Path | None = None
    """For a server: a PEM file with certificate authorities. Clients without a certificate of one of them are
    refused. None: clients need no certificate."""
    journal_path: Path | None = None
    """For a server: the SQLite file that keeps accepted messages over a restart. None: they are lost."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """For a server: how many unsettled messages a topic holds before `publish` raises `QueueFullError`."""
    max_bytes_per_topic: int = Field(default=256 * 1024 * 1024, ge=1)
    """For a server: the same, in bytes of messages. A single message that is larger is refused with
    `PayloadTooLargeError`."""
    max_bytes: int = Field(default=1024 * 1024 * 1024, ge=1)
    """For a server: bytes of the messages of all topics. When there are more, each topic may hold an equal
    share."""
    max_topics: int = Field(default=10_000, ge=1)
    """For a server: how many topics there may be. A further one takes the place of one without messages or
    without readers; if there is none it is refused, unless for dead letters."""
    idle_after: float = Field(default=600.0, gt=0)
    """For a server: seconds after which a topic or a group that nobody reads may lose its messages, when
    there is no room for others."""
    max_dead_letters: int = Field(default=1_000, ge=1)
    """For a server: how many dead letters each topic keeps, within `max_bytes_per_topic`; a further one drops
    the oldest."""
    visibility_timeout: float = Field(default=5.0, gt=0, le=3600)
    """For a server: seconds after which a delivery that is neither settled nor extended comes back."""
    max_body_bytes: int = Field(default=DEFAULT_MAX_BODY_BYTES, ge=1)
    """For a server: maximum size of a request in bytes; larger ones get 413."""
    max_total_body_bytes: int = Field(default=DEFAULT_MAX_TOTAL_BODY_BYTES, ge=1)
    """For a server: how many bytes the bodies of all requests take that are served at the same time. Further
    ones wait for room, and get 503 after 30 seconds. Bodies up to 64 KiB are not counted."""
    max_connections: int = Field(default=DEFAULT_MAX_CONNECTIONS, ge=1)
    """For a server: how many connections of clients are open at the same time; further ones get 503 and are
    closed. There are fewer if the process may not open so many files."""

    @field_validator("client_kwargs")
    @classmethod
    def _check_client_kwargs(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(value) - _CLIENT_KWARGS - {"cert", "verify"})
        if unknown:
            raise ValueError(f"not an argument of aiohttp.ClientSession: {', '.join(unknown)}")
        return value

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return settings from a URL such as `simple://host:8001`."""
        parts = urlsplit(url)
        place = {"host": parts.hostname, "port": parts.port}
        fields: dict[str, Any] = {name: value for name, value in place.items() if value is not None}
        return cls(**fields)

    @property
    def address(self) -> str:
        """The same as `base_url`."""
        return self.base_url

    @property
    def base_url(self) -> str:
        """Where the server's routes begin."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self.use_ssl or self.tls_cert is not None else "http"
        return f"{scheme}://{host}:{self.port}"

    @property
    def tls(self) -> TlsFiles | None:
        """The files with which the server speaks TLS. None: it does not.

        Raises:
            ConfigError: Only some of them are set.
        """
        return TlsFiles.of(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def limits(self) -> BrokerLimits:
        """The bounds of the broker."""
        return BrokerLimits(**{limit.name: getattr(self, limit.name) for limit in fields(BrokerLimits)})

    def public_settings(self) -> dict[str, Any]:
        """Return what another process needs to reach the queue."""
        public = self.model_dump(mode="json", include={"type", "host", "port"})
        return public | {"use_ssl": self.base_url.startswith("https:")}

    async def connect(self) -> AbstractMessageQueue:
        """Return a client, after the server has answered."""
        # The client is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.simple.http_queue import SimpleMessageQueue  # noqa: PLC0415

        return await SimpleMessageQueue.connect(self)
