"""The settings of a client."""

from __future__ import annotations

from typing import Final, Protocol

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_TIMEOUT: Final = 120.0


class HasUrl(Protocol):
    """Settings that lead to a server, such as `ControlPlaneConfig`."""

    @property
    def url(self) -> str:
        """The server's base URL."""


class ClientSettings(BaseSettings):
    """Where a client finds its servers; each field may also come from the environment.

    The variables are the names of the fields behind `LLAMA_DEPLOY_`, such as `LLAMA_DEPLOY_TIMEOUT`.
    Servers are fixed once the client exists; `timeout` may be changed.
    """

    model_config = SettingsConfigDict(env_prefix="LLAMA_DEPLOY_", validate_assignment=True)

    api_server_url: str = Field(default="http://localhost:4501", frozen=True)
    """The API server, for what `apiserver` offers."""
    control_plane_url: str = Field(default="http://localhost:8000", frozen=True)
    """The control plane, for everything else."""
    disable_ssl: bool = Field(default=False, frozen=True)
    """True accepts any certificate of an `https` server."""
    timeout: float = Field(default=DEFAULT_TIMEOUT, gt=0)
    """Seconds to wait for a result, and for a server that does not answer to come back."""
    poll_interval: float = 0.5
    """Deprecated and without effect: nothing polls. Kept so that 0.6 programs run unchanged."""
