"""Settings of the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from llama_deploy.types.audit import AuditScope
from llama_deploy.types.ports import BoundPort
from llama_deploy.types.retention import Days, KeptDays, RetentionRule
from llama_deploy.types.topics import TopicNamespace
from llama_deploy.web.connection_limit import DEFAULT_MAX_CONNECTIONS
from llama_deploy.web.edge.body_budget import DEFAULT_MAX_TOTAL_BODY_BYTES
from llama_deploy.web.edge.body_limit import DEFAULT_MAX_BODY_BYTES
from llama_deploy.web.edge.host_settings import AllowedOrigins, TrustedHostNames
from llama_deploy.web.edge.server_key import ServerKey
from llama_deploy.web.server_tls import TlsFiles


class ControlPlaneConfig(BaseSettings):
    """Settings of the control plane; environment variables begin with `CONTROL_PLANE_`."""

    model_config = SettingsConfigDict(
        env_prefix="CONTROL_PLANE_", extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    services_store_key: str = "services"
    """Kept for 0.6 programs; the state store has tables of its own."""
    tasks_store_key: str = "tasks"
    """Kept for 0.6 programs."""
    session_store_key: str = "sessions"
    """Kept for 0.6 programs."""
    step_interval: float = 0.1
    """Kept for 0.6 programs; nothing polls."""
    host: str = "127.0.0.1"
    """The host under which clients and services reach the control plane."""
    port: BoundPort | None = 8000
    """The port under which they reach it. 0: the system chooses one. None: the URL has no port."""
    internal_host: str | None = None
    """The address to bind, if it differs from `host`."""
    internal_port: BoundPort | None = None
    """The port to bind, if it differs from `port`."""
    running: bool = True
    """Kept for 0.6 programs."""
    cors_origins: AllowedOrigins = None
    """Origins of web pages that may use the control plane, such as `https://app.example.com`; `*` is every
    origin. None: only pages that the control plane serves itself."""
    trusted_hosts: TrustedHostNames = Field(default_factory=list)
    """Additional names under which the control plane is reached, such as `deploy.example.com` or
    `*.example.com`; `*` is every name. A request for another host gets 421.

    IP addresses, `localhost`, `host` and `internal_host` need no entry."""
    topic_namespace: TopicNamespace = "llama_deploy"
    """The first part of every topic's name: 1 to 64 letters, digits, `_`, `-` and `.`, which every broker
    accepts."""
    state_store_uri: str | None = Field(default=None, repr=False)
    """Where the state is kept, such as `sqlite:///path/to/file.db`.

    None: `./.llama_deploy/control_plane_{port}.db`.
    """
    authentication: Literal["off", "keys"] = "off"
    """Who may use the control plane. `off`: everybody who reaches it. `keys`: callers with an API key; see
    `llamactl keys`."""
    admin_key: ServerKey | None = Field(default=None, repr=False)
    """A key with all rights that is not in the state store, such as to create the first one there: at least
    32 characters. It needs `authentication`. None: there is none."""
    oidc_issuer: str | None = None
    """The URL of an OpenID Connect issuer whose tokens are accepted beside keys. It needs `authentication`,
    and the extra `oidc`. None: there is none."""
    oidc_audience: str | None = None
    """The claim `aud` of its tokens for this control plane."""
    oidc_scopes_claim: str = "scope"
    """The claim of its tokens with the scopes: a text with spaces between them, or a list."""
    oidc_tenant_claim: str | None = None
    """The claim of its tokens with the tenant. Tokens without a valid one are refused. None: all callers work
    with the default tenant."""
    oidc_bound: bool = False
    """Whether the callers of its tokens are bound to the claim `sub`: they work only with their own sessions,
    tasks and questions."""
    authenticator: str | None = None
    """The name of an authenticator that another package has installed. It is asked before keys are looked
    for, and needs `authentication`. None: there is none."""
    allow_remote: bool = False
    """Whether a control plane without `authentication` may listen on an address that other machines can
    reach."""
    use_tls: bool = False
    """Whether `url` starts with `https`, as behind a proxy that ends TLS. It does with `tls_cert` anyway."""
    tls_cert: Path | None = None
    """A PEM file with the certificate of the server, followed by those of the authorities between it and a
    trusted one. With it and `tls_key` the server speaks TLS. A changed file is used without a restart."""
    tls_key: Path | None = None
    """A PEM file with the key of `tls_cert`, not encrypted."""
    tls_client_ca: Path | None = None
    """A PEM file with certificate authorities. Clients without a certificate of one of them are refused.
    None: clients need no certificate."""
    lease_seconds: float = Field(default=5.0, gt=0)
    """Seconds without a heartbeat after which an instance is lost and its tasks are dispatched again."""
    redispatch_seconds: float = Field(default=15.0, gt=0)
    """Seconds after which an unclaimed task is dispatched again; doubled each time."""
    retry_backoff_seconds: float = Field(default=1.0, ge=0)
    """Seconds that a task waits after it has ended a second process; doubled with each further one."""
    retry_backoff_max_seconds: float = Field(default=60.0, ge=0)
    """The maximum of that wait."""
    metrics: bool = True
    """Whether tasks are counted and timed for `/metrics`, which costs some microseconds for each. Without it,
    `/metrics` shows what can be read from the store."""
    max_queued_tasks: int = Field(default=100_000, gt=0)
    """How many tasks of one service may wait for an instance, `pending` ones included, before new ones are
    rejected with 429. Other services are not affected."""
    min_free_disk_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """How many bytes must be free, for `/health/ready` to answer 200, on the disk with the SQLite file. Of a
    disk that is smaller than 20 times as much, a twentieth is enough. 0: this is not checked."""
    max_backlog: int = Field(default=20_000, gt=0)
    """How many messages to one service may wait for the queue before new tasks for it are rejected with 429.
    """
    orchestrator_timeout: float = Field(default=60.0, gt=0)
    """Seconds that an orchestrator of your own has to answer what follows for a task, after which the task
    fails."""
    max_orchestrator_calls: int = Field(default=1000, gt=0)
    """How many tasks it is asked about at the same time; further tasks wait for their turn."""
    max_inbox_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """How many bytes the events take that were sent to one task and that its run has not consumed. A further
    one is rejected with 429, and one that is larger by itself with 413."""
    max_session_state_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """How many bytes the state of one session takes as JSON. A write that makes it larger is rejected with
    413; a task that ends with one fails."""
    retention_task_days: KeptDays = 30.0
    """For how many days a task is kept after its end, with its result, events, inbox and journal. `off`: it
    is never removed."""
    retention_event_days: KeptDays = 7.0
    """For how many days after the end of a task its events are kept, except for the terminal one. `off`: as
    long as the task."""
    retention_max_tasks: int | None = Field(default=None, ge=1)
    """How many ended tasks are kept. Of more, those are removed that ended first and that no rule matches.
    What ended within 24 hours is kept anyway. None: any number."""
    retention_rules: list[RetentionRule] = Field(default_factory=list)
    """Exceptions by status, service and session, as JSON: `[{"service": "chat", "status": ["failed"],
    "task_days": 90}]`. The first rule that matches a task counts. Its fields are `status`, `service` and
    `session`, and `task_days`, `event_days`, `max_tasks` and `journals`."""
    retention_journals: bool = False
    """Whether the journal of a task that succeeds is kept as long as the task, so that it can be retried from
    one of its steps. Those of other tasks are kept anyway."""
    retention_removed_days: Days = 90.0
    """For how many days the id of a removed task is remembered. A submission with it gets 410."""
    retention_session_days: KeptDays = "off"
    """For how many days a session without tasks is kept, with its state, after the last write of the state.
    `off`: until it is deleted."""
    retention_audit_days: KeptDays = 365.0
    """For how many days entries of the audit log are kept. `off`: for ever."""
    audit: AuditScope = "changes"
    """Which requests leave an entry in the audit log. `changes`: those that change what exists, and those
    that are refused. `all`: also submissions, events for tasks, new sessions and writes of their state, which
    clients send all the time. `off`: none."""
    max_body_bytes: int = Field(default=DEFAULT_MAX_BODY_BYTES, gt=0)
    """Maximum size of a request body in bytes; larger requests get 413."""
    max_total_body_bytes: int = Field(default=DEFAULT_MAX_TOTAL_BODY_BYTES, gt=0)
    """How many bytes the bodies of all requests take that are served at the same time. Further ones wait for
    room, and get 503 after 30 seconds. Bodies up to 64 KiB are not counted."""
    max_connections: int = Field(default=DEFAULT_MAX_CONNECTIONS, gt=0)
    """How many connections of clients are open at the same time; further ones get 503 and are closed. There
    are fewer if the process may not open so many files."""

    @property
    def url(self) -> str:
        """The URL under which clients and services reach the control plane."""
        scheme = "https" if self.use_tls or self.tls_cert is not None else "http"
        return f"{scheme}://{self.host}:{self.port}" if self.port else f"{scheme}://{self.host}"

    @property
    def tls(self) -> TlsFiles | None:
        """The files with which the server speaks TLS. None: it does not.

        Raises:
            ConfigError: Only some of them are set.
        """
        return TlsFiles.of(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def store_uri(self) -> str:
        """The address of the state store, the default filled in."""
        return self.state_store_uri or f"sqlite:///.llama_deploy/control_plane_{self.port or 0}.db"

    def public_settings(self) -> dict[str, Any]:
        """Return the settings as JSON without secrets and the files of this machine.

        The store's address may hold a password.
        """
        hidden = {"state_store_uri", "admin_key", "tls_cert", "tls_key", "tls_client_ca"}
        return self.model_dump(mode="json", exclude=hidden) | {"use_tls": self.url.startswith("https:")}
