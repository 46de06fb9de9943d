"""Settings of a queue on Redis or Valkey."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict
from redis.asyncio.connection import SSLConnection, parse_url

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_tls import BrokerTlsConfig
from llama_deploy.message_queues.urls import BrokerUrl, UrlForm, bracketed
from llama_deploy.types.ports import RemotePort

_CREDENTIALS: Final = frozenset({"username", "password"})
# Arguments of redis-py's connections that hold no secret and that the queue does not set itself.
_ARGUMENTS: Final = frozenset(
    {
        "client_name",
        "db",
        "health_check_interval",
        "max_connections",
        "socket_read_size",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
    }
)
_FORM: Final = UrlForm(
    expected="redis://host:port/db, rediss://, valkey://, valkeys:// or unix:///path is expected",
    schemes={"redis", "rediss", "valkey", "valkeys", "unix"},
    arguments=_ARGUMENTS | _CREDENTIALS,
)


class RedisMessageQueueConfig(BrokerTlsConfig):
    """Settings of a queue on Redis or Valkey. Environment variables begin with `REDIS_`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["redis"] = "redis"
    """Identifies the backend."""
    url: str = "redis://localhost:6379"
    """`redis://host:port/db`, `rediss://` for TLS, or `unix:///path?db=0`; `valkey` is read as `redis`. The
    query holds further arguments of a connection of redis-py, such as `ssl_ca_certs`. Credentials in the URL
    move to `username` and `password`."""
    host: str | None = None
    """Takes precedence over the host of `url`, unless that is a `unix://` URL."""
    port: RemotePort | None = None
    """Takes precedence over the port of `url`."""
    db: int | None = Field(default=None, ge=0)
    """The number of the database; takes precedence over that of `url`."""
    username: str | None = Field(default=None, repr=False)
    """None: the server's default user. Like `password`, never leaves the process."""
    password: SecretStr | None = None
    """None: no authentication."""
    ssl: bool | None = None
    """Whether to speak TLS. None: as the scheme of `url` says, or if a field `tls_...` is set."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds for an answer. A waiting reader asks again after twice that, and so detects a dead
    connection."""
    max_messages_per_topic: int = Field(default=100_000, ge=1)
    """How many unsettled messages a topic holds before `publish` raises `QueueFullError`."""
    max_dead_letters: int = Field(default=1_000, ge=1)
    """How many dead letters each topic keeps; a further one drops the oldest."""
    visibility_timeout: float = Field(default=5.0, ge=0.01, le=3600)
    """Seconds after which a delivery that is neither settled nor extended comes back, from a dead member
    too."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Find `username` and `password`."""
        parsed = _parsed(url)
        return {**parsed.credentials, "url": parsed.address.text}

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:
        """The URL always says whether to use TLS."""
        parsed = _parsed(url)
        address = parsed.address
        said = {"ssl"} | parsed.credentials.keys()
        said |= {"host"} if address.host or address.scheme == "unix" else set()
        said |= {"port"} if address.port or address.scheme == "unix" else set()
        has_number = address.scheme != "unix" and address.path.strip("/")
        return said | ({"db"} if has_number or "db" in address.query else set())

    @property
    def address(self) -> str:
        """The URL of the server that is connected to, without credentials and further arguments."""
        options = self.connection_options
        if "path" in options:
            return f"unix://{quote(options['path'])}?db={options.get('db', 0)}"
        scheme = "rediss" if options.get("connection_class") is SSLConnection else "redis"
        host, port = bracketed(options.get("host", "localhost")), options.get("port", 6379)
        return f"{scheme}://{host}:{port}/{options.get('db', 0)}"

    @property
    def connection_options(self) -> dict[str, Any]:
        """Arguments of redis-py's connections, the password among them."""
        options: dict[str, Any] = dict(parse_url(self.url))
        is_remote = "path" not in options
        speaks_tls = True if self.ssl is None and self.tls_files else self.ssl
        if is_remote and speaks_tls is not None:
            options.pop("connection_class", None)
            options |= {"connection_class": SSLConnection} if speaks_tls else {}
        if options.get("connection_class") is SSLConnection:
            options.setdefault("ssl_check_hostname", True)
        for name in ("host", "port", "db", "username") if is_remote else ("db", "username"):
            options |= {name: value} if (value := getattr(self, name)) is not None else {}
        return options | ({"password": self.password.get_secret_value()} if self.password else {})

    async def connect(self) -> AbstractMessageQueue:
        """Connect, and check the server's version and settings."""
        # The queue is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.redis.queue import RedisMessageQueue  # noqa: PLC0415

        return await RedisMessageQueue.connect(self)


def _parsed(text: str) -> BrokerUrl:
    """Parse a URL, with the scheme that redis-py knows and without credentials in the query.

    Raises:
        ValueError: The URL cannot work.
    """
    url = _FORM.parse(text)
    address = url.address
    query = {name: value for name, value in address.query.items() if name not in _CREDENTIALS}
    clean = replace(address, scheme=address.scheme.replace("valkey", "redis"), query=query)
    number = address.path.strip("/")
    if (address.netloc or not number) if address.scheme == "unix" else (number and not number.isdecimal()):
        raise _FORM.invalid()
    try:
        parse_url(clean.text)
    except ValueError:
        raise _FORM.invalid("an argument in its query has an invalid value") from None
    return BrokerUrl(
        (clean,),
        address.query.get("username") or url.username,
        address.query.get("password") or url.password,
    )
