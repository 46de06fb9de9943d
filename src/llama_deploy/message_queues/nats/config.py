"""Settings of NATS JetStream."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_tls import BrokerTlsConfig
from llama_deploy.message_queues.urls import UrlForm

_CREDENTIALS: Final = frozenset({"username", "password", "token", "credentials"})
_FORM: Final = UrlForm(
    expected="a URL is nats://host:port, or tls://, ws:// or wss://; several have commas",
    schemes={"nats", "tls", "ws", "wss"},
    needs_host=True,
    has_several=True,
)


class NatsMessageQueueConfig(BrokerTlsConfig):
    """Settings of NATS JetStream. Environment variables begin with `NATS_`."""

    model_config = SettingsConfigDict(env_prefix="NATS_")

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["nats"] = "nats"
    """Identifies the backend."""
    url: str = "nats://localhost:4222"
    """Where the servers are: one URL or several, divided by commas; `nats://`, `tls://`, `ws://` or `wss://`.
    With a field `tls_...`, `nats://` means `tls://`.
    A `user:password@` or `token@` in it, the same before each host or before the first only, moves to the
    fields below."""
    username: str | None = Field(default=None, repr=False)
    """With `password`, who connects."""
    password: SecretStr | None = None
    """The password of `username`."""
    token: SecretStr | None = None
    """The token of a server that asks for one."""
    credentials: SecretStr | None = None
    """A credentials file (JWT and seed), its path or its text. Needs the package `nkeys`."""
    stream: str = Field(default="llama_deploy", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """The stream that holds all topics; its subjects begin with its name. `storage`, `replicas`,
    `max_messages_per_topic` and `duplicate_window` apply when it is created; an existing stream keeps its
    own settings."""
    storage: Literal["file", "memory"] = "file"
    """Where a new stream keeps its messages: `file` survives a restart of the server, `memory` does not."""
    replicas: int = Field(default=1, ge=1, le=5)
    """How many servers of a cluster keep a copy of a new stream."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """How many unsettled messages a topic holds before `publish` raises `QueueFullError`."""
    duplicate_window: float = Field(default=30.0, ge=0.1)
    """Seconds in which a second message of the same id and topic is a duplicate."""
    visibility_timeout: float = Field(default=5.0, gt=0, le=3600)
    """Seconds after which a delivery that is neither settled nor extended comes back, from a dead member
    too. The latest subscriber of a group sets it for all its members."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Find `username` and `password`, or `token`."""
        parsed = _FORM.parse(url)
        found = parsed.credentials
        if parsed.password is None and "username" in found:
            found = {"token": found["username"]}
        return {**found, "url": ",".join(each.text for each in parsed.addresses)}

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:
        """Credentials of one kind in the URL replace those of every kind."""
        return set(_CREDENTIALS) if _FORM.parse(url).credentials else set()

    async def connect(self) -> AbstractMessageQueue:
        """Connect, and create the stream if it does not exist."""
        # The client is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.nats.queue import NatsMessageQueue  # noqa: PLC0415

        return await NatsMessageQueue.connect(self)
