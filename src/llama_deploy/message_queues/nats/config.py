"""Settings of NATS JetStream."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig
from llama_deploy.message_queues.urls import BrokerUrl, UrlForm, with_findings

_CREDENTIALS: Final = frozenset({"username", "password", "token", "credentials"})
_FORM: Final = UrlForm(
    expected="a URL is nats://host:port, or tls://, ws:// or wss://; several have commas",
    schemes={"nats", "tls", "ws", "wss"},
    has_several=True,
)


class NatsMessageQueueConfig(MessageQueueConfig):
    """Settings of NATS JetStream. Environment variables begin with `NATS_`."""

    model_config = SettingsConfigDict(
        env_prefix="NATS_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["nats"] = "nats"
    """Tells the backend's settings from those of others."""
    url: str = "nats://localhost:4222"
    """Where the servers are: one URL or several, divided by commas; `nats://`, `tls://`, `ws://` or `wss://`.
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
    """The stream that holds all topics; its subjects begin with its name. Made when it does not exist; then
    `storage`, `replicas`, `max_messages_per_topic` and `duplicate_window` count, else those it has."""
    storage: Literal["file", "memory"] = "file"
    """Where a new stream keeps its messages: `file` outlives the server, `memory` does not."""
    replicas: int = Field(default=1, ge=1, le=5)
    """How many servers of a cluster keep a copy of a new stream."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """How many unsettled messages a topic holds before `publish` raises `QueueFullError`."""
    duplicate_window: float = Field(default=30.0, ge=0.1)
    """Seconds in which a second message of the same id and topic is taken as the same one."""
    visibility_timeout: float = Field(default=5.0, gt=0, le=3600)
    """Seconds after which a delivery that is neither settled nor extended comes back, from a dead member
    too. The latest subscriber of a group sets it for all its members."""
    max_deliveries: int = Field(default=10, ge=1)
    """After so many deliveries without an ack a message goes to `{topic}.dead_letters`."""
    retry_seconds: float = Field(default=10.0, ge=0)
    """How long `publish` and `subscribe` try to reach a server that does not answer before they raise
    `UnavailableError`. Receiving tries for ever."""
    raise_exceptions: bool = False
    """Whether an error in a consumer ends `start_consuming`, which raises it, after the message went back to
    the queue. False: it is logged, and consuming goes on."""

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(values.get("url"), str):
            return values
        url = _parsed(values["url"])
        found = url.credentials
        if url.password is None and "username" in found:
            found = {"token": found["username"]}
        return with_findings(values, found, ",".join(each.text for each in url.addresses))

    @classmethod
    def said_by(cls, url: str) -> set[str]:
        """Return the names of the fields that `url` says: credentials of one kind leave no other."""
        return set(_CREDENTIALS) if _parsed(url).credentials else set()

    def public_settings(self) -> dict[str, Any]:
        """Return what another process needs to reach the queue, but for the credentials."""
        return self.model_dump(mode="json", exclude={*_CREDENTIALS, "raise_exceptions"})

    async def connect(self) -> AbstractMessageQueue:
        """Return a live queue.

        Raises:
            UnavailableError: No server, or no JetStream, answered for `retry_seconds`.
            ConfigError: The server refuses the credentials or the stream's settings.
        """
        # The client is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.nats.queue import NatsMessageQueue  # noqa: PLC0415

        return await NatsMessageQueue.connect(self)


def _parsed(text: str) -> BrokerUrl:
    """Return what a URL says.

    Raises:
        ValueError: The URL cannot work.
    """
    url = _FORM.parse(text)
    if not all(each.host for each in url.addresses):
        raise _FORM.refusal()
    return url
