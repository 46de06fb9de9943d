"""The settings of a client."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """Where a client finds its servers and how long it waits.

    `Client` takes each field as a keyword argument. A field that you do not pass comes from the environment
    variable of its name with the prefix `LLAMA_DEPLOY_`, such as `LLAMA_DEPLOY_TIMEOUT`.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLAMA_DEPLOY_", validate_assignment=True, use_attribute_docstrings=True
    )

    control_plane_url: str = Field(default="http://localhost:8000", frozen=True)
    """The URL of the control plane."""
    api_server_url: str = Field(default="http://localhost:4501", frozen=True)
    """The URL of the API server. Only `client.apiserver` uses it."""
    disable_ssl: bool = Field(default=False, frozen=True)
    """Accept any certificate from an `https` server."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for a result, and to retry while a server does not respond."""
    poll_interval: float = 0.5
    """Deprecated and ignored: the client does not poll. Kept for programs written for 0.6."""
