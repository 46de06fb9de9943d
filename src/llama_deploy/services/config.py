"""Settings of a workflow service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llama_deploy.types import SessionPolicy
from llama_deploy.types.ports import BoundPort
from llama_deploy.web.edge.host_settings import TrustedHostNames
from llama_deploy.web.edge.server_key import ServerKey
from llama_deploy.web.server_tls import TlsFiles


def _split(names: object) -> object:
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


class WorkflowServiceConfig(BaseSettings):
    """Settings of a workflow service; environment variables begin with `LLAMA_DEPLOY_WF_SERVICE_`.

    `step_interval` is kept for 0.6 programs: `GET /` shows it, and it has no effect.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLAMA_DEPLOY_WF_SERVICE_", extra="ignore", use_attribute_docstrings=True
    )

    host: str
    """The address at which others reach the service."""
    port: BoundPort
    """The port at which others reach it. 0: the system chooses a port, which is then registered."""
    internal_host: str | None = None
    """The address to bind, if it differs from `host`."""
    internal_port: BoundPort | None = None
    """The port to bind, if it differs from `port`."""
    service_name: str = "default_workflow_service"
    """The name that clients call. Instances with the same name share its tasks."""
    description: str = "A service that wraps a llama-index workflow."
    """Shown in the list of services."""
    step_interval: float = 0.1
    """Kept for 0.6 programs; it has no effect."""
    max_concurrent_tasks: int = Field(default=8, gt=0)
    """How many tasks this instance works on at the same time."""
    max_step_threads: int | None = Field(default=None, gt=0)
    """How many synchronous steps (plain functions) run at the same time, each in a thread. Further ones wait
    for a thread; that time counts against the time limit of their runs. None: four for each of
    `max_concurrent_tasks`, so 32 by default.

    Steps whose runs have ended, but which cannot be interrupted, do not count.
    """
    max_lost_threads: int = Field(default=100, gt=0)
    """From how many lost threads on this instance takes no new tasks and logs an error. It goes on when some
    of them have ended; tasks that it has taken continue.

    A thread is lost while its step runs on although its run has ended: it was cancelled or timed out.
    """
    raise_exceptions: bool = False
    """Whether a failed task also raises in the service's own process and ends it, for debugging.

    The failure is reported to the client either way.
    """
    stream_internal_events: bool = False
    """Whether the events by which the workflow library tells what happens inside a run, such as
    `StepStateChanged`, are kept in the stream of the task. Readers get them if they ask for them
    (`internal=true`). Each step that runs adds two or three.
    """
    api_key: ServerKey | None = Field(default=None, repr=False)
    """The key that callers of the service's own HTTP server need: at least 32 characters. None: it admits
    everybody."""
    allow_remote: bool = False
    """Whether the service may listen without `api_key` on an address that other machines can reach."""
    trusted_hosts: TrustedHostNames = Field(default_factory=list)
    """Additional names under which the service is reached, such as `service.example.com`; `*` is every
    name. A request for another host gets 421.

    IP addresses, `localhost`, `host` and `internal_host` need no entry.
    """
    use_tls: bool = False
    """Whether `url` begins with `https`, for a service behind a proxy that terminates TLS. It does with
    `tls_cert` anyway."""
    tls_cert: Path | None = None
    """A PEM file with the certificate of the service's own HTTP server and of the server for probes, followed
    by those of the authorities between it and a trusted one. With it and `tls_key` they speak TLS. A changed
    file is used without a restart."""
    tls_key: Path | None = None
    """A PEM file with the key of `tls_cert`, not encrypted."""
    tls_client_ca: Path | None = None
    """A PEM file with certificate authorities. Clients without a certificate of one of them are refused,
    probes too. None: clients need no certificate."""
    durability: Literal["auto", "step", "task"] = "auto"
    """Where a task resumes when its instance was killed.

    `auto`: after its last finished step, with its state, as long as everything can be stored that the run
    keeps in `ctx.store` and in events between steps. When a value cannot be stored, such as a client, a lock
    or a DataFrame, the run becomes volatile: it continues in memory, and resumes at its beginning. `step`:
    after its last finished step; a value that cannot be stored fails the task at the end of the step.
    `task`: at its beginning.

    With `auto` and `task`, keys of `ctx.store` that cannot be stored are missing in later tasks of the
    session. The events that the workflow streams must be valid JSON in any case. A result without a JSON form
    becomes its text.
    """
    session_policy: SessionPolicy | None = None
    """The policy of a session that begins with a task of this service, because the task was submitted without
    a session. None: `enqueue`. A session that was created before keeps its own.
    """
    idle_timeout: float | None = Field(default=60.0, ge=0)
    """Seconds after which a run that only waits for something from outside leaves memory. If another task
    needs its slot, it leaves at once.

    None: only when the service is full or stops. 0: at once. With durability `task`, and if the
    run is volatile, it always stays, and gives up its slot while it waits.
    """
    state_keys: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)] = Field(default_factory=list)
    """Secrets that sign what the service stores, at least 16 bytes each. Create one with
    `openssl rand -hex 32`.

    The states that workflows keep in sessions and the journals of runs are signed; inputs, events and results
    are not. Somebody who can write to the state store can still restore older states and journals, or delete
    them. Empty: nothing is signed.

    The first key signs, all keys verify. Once there is a key, everything that was stored without one is
    rejected: set keys before the first session, or start new sessions. To change the key, put the new one
    first on all instances, and remove the old one when no run or session is signed with it any more. All
    services that share the state of a session need the same keys. In the environment, keys are separated by
    commas.
    """
    drain_timeout: float = Field(default=30.0, ge=0)
    """Seconds that running tasks may take to end when the service stops. The rest is handed back."""
    allowed_types: Annotated[list[str], NoDecode, BeforeValidator(_split)] = Field(default_factory=list)
    """Names of further classes that events and state may contain, such as `package.module:Answer` or
    `package.module.Answer`.

    In the environment, separate names by commas; `llamactl serve` and `worker` also take `--allow-type`.
    The classes are imported when the service is created.

    You do not need to name: the workflow's events, its state, the classes in their annotations; the models,
    dataclasses, enums and exceptions that the workflow's module defines or imports by name; the subclasses of
    all these that are loaded when the service is created; llama_index's nodes, messages, responses and what
    its agents return. You must name an event that clients send if it appears only in `ctx.wait_for_event`,
    unless it is a `HumanResponseEvent`, or derived from it in a module from which the workflow's module
    imports something.
    """
    metrics: bool = True
    """Whether attempts and steps are counted and timed for `/metrics`, which costs some microseconds for each
    of them."""
    blocked_limit: float = Field(default=60.0, gt=0)
    """Seconds after which an instance whose event loop is blocked stops its heartbeats.

    Its tasks then move on to other instances.
    """

    @property
    def url(self) -> str:
        """The URL at which others reach the service."""
        scheme = "https" if self.use_tls or self.tls_cert is not None else "http"
        return f"{scheme}://{self.host}:{self.port}" if self.port else f"{scheme}://{self.host}"

    @property
    def tls(self) -> TlsFiles | None:
        """The files with which the service's own HTTP server speaks TLS. None: it does not.

        Raises:
            ConfigError: Only some of them are set.
        """
        return TlsFiles.of(self.tls_cert, self.tls_key, self.tls_client_ca)
