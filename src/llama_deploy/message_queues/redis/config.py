"""Settings of a queue on Redis or Valkey."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict
from redis.asyncio.connection import SSLConnection, parse_url

from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig


class RedisMessageQueueConfig(MessageQueueConfig):
    """Settings of a queue on Redis or Valkey. Environment variables begin with `REDIS_`."""

    model_config = SettingsConfigDict(
        env_prefix="REDIS_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    type: Literal["redis"] = "redis"
    """Tells the backend's settings from those of others."""
    url: str = "redis://localhost:6379"
    """`redis://host:port/db`, `rediss://` for TLS, or `unix:///path?db=0`; `valkey` is read as `redis`. The
    query holds further arguments of a connection of redis-py, such as `ssl_ca_certs`. Credentials in it are
    moved to `username` and `password`."""
    host: str | None = None
    """Goes before the host of `url`."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Goes before the port of `url`."""
    db: int | None = Field(default=None, ge=0)
    """The number of the database; goes before that of `url`."""
    username: str | None = Field(default=None, repr=False)
    """None: the server's default user. Never leaves the process, as little as `password`."""
    password: SecretStr | None = None
    """None: no authentication."""
    ssl: bool | None = None
    """Whether to speak TLS. None: as the scheme of `url` says."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds for an answer. Who waits for messages asks again every twice that, and so finds out when a
    connection has died without a word."""
    retry_seconds: float = Field(default=10.0, ge=0)
    """How long `publish` and `subscribe` try to reach a server that does not answer before they raise
    `UnavailableError`. 0: one try. Receiving tries for ever."""
    raise_exceptions: bool = False
    """An error in a consumer ends `start_consuming`, which raises it, after the message went back to the
    queue. False: it is logged, and consuming goes on."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """How many unsettled messages a topic holds before `publish` raises `QueueFullError`."""
    max_dead_letters: int = Field(default=1_000, ge=1)
    """How many dead letters each topic keeps; a further one drops the oldest."""
    visibility_timeout: float = Field(default=30.0, ge=0.01, le=3600)
    """Seconds after which a delivery that is neither settled nor extended comes back."""
    max_deliveries: int = Field(default=10, ge=1)
    """After so many deliveries without an ack a message goes to `{topic}.dead_letters`."""

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(values.get("url"), str):
            return values
        url = urlsplit(values["url"].strip())
        scheme = url.scheme.replace("valkey", "redis")
        if scheme not in ("redis", "rediss", "unix"):
            raise ValueError("url: a redis://, rediss://, valkey://, valkeys:// or unix:// URL is expected")
        _ = url.port  # raises if it is no number
        query = dict(parse_qsl(url.query))
        if "ssl_password" in query:
            raise ValueError("url: ssl_password is a secret and has no place in a URL; use a key without one")
        user, _, address = url.netloc.rpartition("@")
        username, _, password = (unquote(part) for part in user.partition(":"))
        found = {
            "username": query.pop("username", None) or username or None,
            "password": query.pop("password", None) or password or None,
        }
        given = {name: value for name, value in values.items() if value is not None}
        clean = url._replace(scheme=scheme, netloc=address, query=urlencode(query)).geturl()
        return {**found, **given, "url": clean}

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_links(cls, value: object) -> object:
        # Beside a service named redis, Kubernetes sets REDIS_PORT=tcp://... in every container.
        return None if isinstance(value, str) and value.startswith("tcp://") else value

    @property
    def connection_options(self) -> dict[str, Any]:
        """Arguments of redis-py's connections, the password among them."""
        options: dict[str, Any] = dict(parse_url(self.url))
        if self.ssl is not None:
            options.pop("connection_class", None)
            options |= {"connection_class": SSLConnection} if self.ssl else {}
        if options.get("connection_class") is SSLConnection:
            options.setdefault("ssl_check_hostname", True)
        for name in ("host", "port", "db", "username"):
            options |= {name: value} if (value := getattr(self, name)) is not None else {}
        return options | ({"password": self.password.get_secret_value()} if self.password else {})

    def public_settings(self) -> dict[str, Any]:
        """Return what another process needs to reach the queue, beside the credentials."""
        return self.model_dump(mode="json", exclude={"username", "password", "raise_exceptions"})

    async def connect(self) -> AbstractMessageQueue:
        """Return a live queue.

        Raises:
            UnavailableError: The server did not answer for `retry_seconds`.
            ConfigError: The server refuses the credentials, or is too old.
        """
        # The queue is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.redis.queue import RedisMessageQueue  # noqa: PLC0415

        return await RedisMessageQueue.connect(self)
