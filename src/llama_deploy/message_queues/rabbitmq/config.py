"""Settings of the queue over RabbitMQ."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_tls import BrokerTlsConfig
from llama_deploy.message_queues.urls import UrlForm, bracketed
from llama_deploy.types.ports import RemotePort

_CREDENTIALS: Final = frozenset({"username", "password"})
_FORM: Final = UrlForm(
    expected="a URL is amqp://user:password@host:port/vhost, or amqps://",
    schemes={"amqp", "amqps"},
    arguments={"cafile", "certfile", "keyfile", "no_verify_ssl"},
    needs_host=True,
)


class RabbitMQMessageQueueConfig(BrokerTlsConfig):
    """Settings of the queue over RabbitMQ. Environment variables begin with `RABBITMQ_`."""

    model_config = SettingsConfigDict(env_prefix="RABBITMQ_")

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["rabbitmq"] = "rabbitmq"
    """Identifies the backend."""
    url: str = "amqp://localhost/"
    """Where the broker is: `amqp://user:password@host:port/vhost`, or `amqps://`. The user and the password
    move to the fields below; without any they are `guest`. The query may name `cafile`, `certfile`, `keyfile`
    and `no_verify_ssl=1`."""
    exchange_name: str = Field(default="llama-deploy", pattern=r"^[a-zA-Z0-9_.:-]{1,100}$")
    """The exchange, and how the name of each queue begins: use a different one for each system that shares
    a vhost."""
    username: str | None = Field(default=None, repr=False)
    """The user; takes precedence over that of `url`."""
    password: SecretStr | None = None
    """The password of `username`; takes precedence over that of `url`."""
    host: str | None = None
    """Takes precedence over the host of `url`."""
    port: RemotePort | None = None
    """Takes precedence over the port of `url`. The default is 5672, or 5671 with TLS."""
    vhost: str | None = None
    """Takes precedence over the vhost of `url`. The default is `/`."""
    secure: bool | None = None
    """Whether to speak TLS. None: as the scheme of `url` says, or if a field `tls_...` is set."""
    heartbeat: int = Field(default=10, ge=1, le=300)
    """Seconds between the heartbeats of both sides. After two missing ones the broker gives the messages of a
    member to others; after three a member opens another connection."""
    ack_timeout: float = Field(default=1800.0, gt=0)
    """Seconds for which the broker lets a delivery be unsettled, its own setting `consumer_timeout`."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """How many messages of a topic may wait in a group before `publish` raises `QueueFullError`, roughly."""
    max_dead_letters: int = Field(default=1_000, ge=1)
    """How many dead letters each topic keeps; a further one drops the oldest."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Find `username` and `password`."""
        parsed = _FORM.parse(url)
        return {**parsed.credentials, "url": parsed.address.text}

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return settings from an `amqp://` or `amqps://` URL; `rabbitmq://` is read as `amqp://`."""
        return super().from_url(re.sub(r"^rabbitmq://", "amqp://", url))

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:
        """The URL always says whether to use TLS."""
        parsed = _FORM.parse(url)
        said = {"host", "secure"} | parsed.credentials.keys()
        said |= {"port"} if parsed.address.port else set()
        return said | ({"vhost"} if parsed.address.path else set())

    @property
    def address(self) -> str:
        """The URL of the broker, without credentials and options."""
        parts = urlsplit(self.url)
        secure = self.secure
        if secure is None:
            secure = parts.scheme == "amqps" or bool(self.tls_files)
        host = self.host or parts.hostname or ""
        port = self.port or parts.port or (5671 if secure else 5672)
        path = parts.path or "/"
        if self.vhost is not None:
            path = "/" if self.vhost == "/" else "/" + quote(self.vhost, safe="")
        return f"{'amqps' if secure else 'amqp'}://{bracketed(host)}:{port}{path}"

    def driver_url(self, name: str) -> str:
        """Return the URL with credentials and options; `name` is shown by the broker's tools."""
        user = quote("guest" if self.username is None else self.username, safe="")
        password = quote("guest" if self.password is None else self.password.get_secret_value(), safe="")
        scheme, _, rest = self.address.partition("://")
        options = urlencode({"heartbeat": self.heartbeat, "name": name})
        query = "&".join(part for part in (urlsplit(self.url).query, options) if part)
        return f"{scheme}://{user}:{password}@{rest}?{query}"

    def public_settings(self) -> dict[str, Any]:
        """Return the settings with all that says where the broker is in `url`."""
        public = super().public_settings()
        hidden = {"host", "port", "vhost", "secure"}
        return {name: public[name] for name in public.keys() - hidden} | {"url": self.address}

    async def connect(self) -> AbstractMessageQueue:
        """Connect, and declare the exchange."""
        # The queue is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.rabbitmq.queue import RabbitMQMessageQueue  # noqa: PLC0415

        return await RabbitMQMessageQueue.connect(self)
