"""Settings of the queue over Kafka."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_tls import BrokerTlsConfig
from llama_deploy.message_queues.urls import BrokerUrl, UrlForm
from llama_deploy.types.ports import RemotePort

_DEFAULT_PORT: Final = 9092
_CREDENTIALS: Final = frozenset({"username", "password"})
_FORM: Final = UrlForm(
    expected="a URL is host:port, several with commas between, or kafka:// or kafkas:// before",
    schemes={"", "kafka", "kafkas"},
    has_several=True,
)


class KafkaMessageQueueConfig(BrokerTlsConfig):
    """Settings of the queue over Kafka. Environment variables begin with `KAFKA_`."""

    model_config = SettingsConfigDict(env_prefix="KAFKA_")

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["kafka"] = "kafka"
    """Identifies the backend."""
    url: str = "localhost:9092"
    """Where to ask for the brokers: `host:port`, several with commas between them; `kafka://` may stand
    before, and `kafkas://` means TLS. Credentials in it (`kafka://user:password@host`), the same before
    each host or before the first only, move to the fields below."""
    host: str | None = None
    """Takes precedence over the hosts of `url`."""
    port: RemotePort | None = None
    """Of `host`, or where `url` names no port. None: 9092."""
    username: str | None = Field(default=None, repr=False)
    """The SASL user. None: no authentication."""
    password: SecretStr | None = None
    """The password of `username`."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How `username` authenticates."""
    secure: bool | None = None
    """Whether to speak TLS. None: as `url` says, or if a field `tls_...` is set."""
    partitions: int = Field(default=16, ge=1)
    """The partitions of a new topic: at most this many members of a group can share it."""
    replication_factor: int | None = Field(default=None, ge=1)
    """How many brokers keep a new topic. None: as many as the brokers' `default.replication.factor` says."""
    retention: float = Field(default=7 * 24 * 3600.0, ge=1)
    """Seconds for which a new topic keeps its messages, settled or not."""
    max_message_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Maximum size of a message in bytes, also set on new topics."""
    session_timeout: float = Field(default=6.0, gt=0)
    """Seconds after which the messages of a member that fell silent go to the others. The brokers' setting
    `group.min.session.timeout.ms` allows no less than 6."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds for an answer; what takes longer is retried over another connection."""
    poll_seconds: float = Field(default=1.0, gt=0, le=60)
    """How long a broker keeps a request for messages open when there are none. Kafka answers as soon as there
    is one. A broker that only speaks its protocol may look again after half of this: that adds latency."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Find `username` and `password`."""
        parsed = _parsed(url)
        begin = f"{parsed.address.scheme}://" if parsed.address.scheme else ""
        return {**parsed.credentials, "url": begin + ",".join(each.netloc for each in parsed.addresses)}

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:
        """A scheme in the URL says whether to use TLS."""
        parsed = _parsed(url)
        said = {"host"} | parsed.credentials.keys()
        return said | ({"secure"} if parsed.address.scheme else set())

    @property
    def servers(self) -> list[str]:
        """Where to ask for the brokers, `host:port` each."""
        addresses = [self.host] if self.host else self.url.rpartition("://")[2].split(",")
        port = self.port or _DEFAULT_PORT
        return [
            address if ":" in address.rpartition("]")[2] else f"{address}:{port}" for address in addresses
        ]

    @property
    def is_secure(self) -> bool:
        """Whether to speak TLS."""
        if self.secure is not None:
            return self.secure
        return self.url.startswith("kafkas://") or bool(self.tls_files)

    @property
    def connection_options(self) -> dict[str, Any]:
        """Arguments of each client of aiokafka, the password among them.

        Raises:
            ConfigError: A certificate cannot be used.
        """
        options: dict[str, Any] = {"bootstrap_servers": self.servers}
        protocol = "SSL" if self.is_secure else "PLAINTEXT"
        if self.is_secure:
            options["ssl_context"] = self.tls_context()
        if self.username is not None:
            protocol = f"SASL_{protocol}"
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password.get_secret_value() if self.password else "",
            }
        return options | {"security_protocol": protocol}

    def public_settings(self) -> dict[str, Any]:
        """Return the settings with all that says where the brokers are in `url`."""
        public = super().public_settings()
        scheme = "kafkas" if self.is_secure else "kafka"
        url = f"{scheme}://{','.join(self.servers)}"
        return {name: public[name] for name in public.keys() - {"host", "port", "secure"}} | {"url": url}

    async def connect(self) -> AbstractMessageQueue:
        """Connect a producer."""
        # The queue is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.kafka.queue import KafkaMessageQueue  # noqa: PLC0415

        return await KafkaMessageQueue.connect(self)


def _parsed(text: str) -> BrokerUrl:
    """Parse a URL.

    Raises:
        ValueError: The URL cannot work.
    """
    url = _FORM.parse(text)
    if any(
        not each.host or each.path.strip("/") or each.scheme != url.address.scheme for each in url.addresses
    ):
        raise _FORM.invalid()
    return url
