"""Settings of a workflow service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llama_deploy.types.ports import BoundPort
from llama_deploy.web.edge.host_settings import TrustedHostNames


def _split(names: object) -> object:
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


class WorkflowServiceConfig(BaseSettings):
    """Settings of a workflow service; environment variables begin with `LLAMA_DEPLOY_WF_SERVICE_`.

    `step_interval` is kept for 0.6 programs: `GET /` shows it and nothing sleeps on it.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLAMA_DEPLOY_WF_SERVICE_", extra="ignore", use_attribute_docstrings=True
    )

    host: str
    """The address under which others reach the service."""
    port: BoundPort
    """The port under which they reach it. 0: the system chooses, and the port that it chose is registered."""
    internal_host: str | None = None
    """The address to bind, if it is another than `host`."""
    internal_port: BoundPort | None = None
    """The port to bind, if it is another than `port`."""
    service_name: str = "default_workflow_service"
    """The name under which clients call the workflow. Instances of one name share its tasks."""
    description: str = "A service that wraps a llama-index workflow."
    """Shown to those who look for a service."""
    step_interval: float = 0.1
    """Kept for 0.6 programs; nothing sleeps."""
    max_concurrent_tasks: int = Field(default=8, gt=0)
    """How many tasks this instance works on at a time; it takes no more from the queue."""
    raise_exceptions: bool = False
    """Whether a failed task also raises in the service's own process and ends it, for debugging.

    The failure is reported to the client either way.
    """
    allow_remote: bool = False
    """Whether an address may be bound that other machines reach. There is no authentication yet."""
    trusted_hosts: TrustedHostNames = Field(default_factory=list)
    """Further names under which the service is reached, such as `service.example.com`; `*` is every name. A
    request for another host is answered 421.

    IP addresses, `localhost`, `host` and `internal_host` need no entry.
    """
    use_tls: bool = False
    """Whether `url` begins with `https`, as it does behind a proxy that ends TLS."""
    durability: Literal["step", "task"] = "step"
    """From where a task goes on whose instance was killed.

    `step`: after its last finished step, with its state. What the workflow's steps hand to each other must be
    values that can be written down: no live objects such as connections, locks or DataFrames, and no
    `defaultdict`, `deque`, `OrderedDict` or `Counter`. `task`: from its start; the events between steps may
    hold anything.

    With both, what the workflow keeps in `ctx.store` must be writable so, and its result and what it streams
    must have a form in JSON.
    """
    idle_timeout: float | None = Field(default=60.0, ge=0)
    """Seconds after which a run that only waits for something from outside leaves memory; it does so at once
    when other tasks need its slot.

    None: only when the service is full or stops. 0: at once. With durability `task` it always stays.
    """
    state_keys: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)] = Field(default_factory=list)
    """Secrets that sign what the service stores; at least 16 bytes each; `openssl rand -hex 32` makes one.

    Signed are the states that workflows keep in sessions, and the journals of runs. Inputs, events and
    results are not. Nor does a signature keep anybody who can write to the state store from putting older
    states and journals back, or deleting them. Empty: nothing is signed.

    The first one signs, all verify. What was stored without a key is refused once there is one: set keys
    before the first session, or begin new ones. To change the key, put the new one in front on all instances,
    and remove the old one when no run or session is left that is signed with it. All services that share the
    state of a session need the same keys. In the environment they are separated by commas.
    """
    drain_timeout: float = Field(default=30.0, ge=0)
    """Seconds that running tasks may take to end when the service stops; the rest is handed back."""
    allowed_types: Annotated[list[str], NoDecode, BeforeValidator(_split)] = Field(default_factory=list)
    """Qualified names of further classes that events and session state may hold, such as `package.Answer`.

    In the environment they are separated by commas. The classes are imported when the service is made.

    Known without being named: the workflow's events, its state, the classes in their annotations, and the
    models, dataclasses, enums and exceptions that the workflow's module defines or imports by name, with
    the subclasses of all these that are loaded when the service is made; and llama_index's nodes and
    messages if it is loaded then. An event that clients send and that appears only in `ctx.wait_for_event`
    must be named.
    """
    blocked_limit: float = Field(default=60.0, gt=0)
    """Seconds after which an instance whose event loop is blocked stops its heartbeats.

    Its tasks then move on to other instances.
    """

    @property
    def url(self) -> str:
        """The URL under which others reach the service."""
        scheme = "https" if self.use_tls else "http"
        return f"{scheme}://{self.host}:{self.port}" if self.port else f"{scheme}://{self.host}"
