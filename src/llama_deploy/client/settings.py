"""The settings of a client."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llama_deploy.errors import ConfigError
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.server_url import ServerUrl

NOT_GIVEN: Final = -1.0
"""The timeout of a client that is created without one."""


_KEY: Final = re.compile(r"[\x21-\x7e]+")


def _split(urls: object) -> object:
    return [url.strip() for url in urls.split(",")] if isinstance(urls, str) and "," in urls else urls


def _headers(given: object) -> object:
    """Return headers as pydantic takes them. Errors do not show them."""
    if isinstance(given, str):
        with suppress(ValueError):
            given = json.loads(given)
    if isinstance(given, Mapping):
        return dict(given)
    raise ValueError('must be an object of names and values, such as {"X-Team": "blue"}')


def _without_limit(seconds: object) -> object:
    return math.inf if seconds is None else seconds


class ClientSettings(BaseSettings):
    """Where a client finds its servers and how long it waits.

    `Client` takes each field as a keyword argument. A field that you do not pass comes from the environment
    variable of its name with the prefix `LLAMA_DEPLOY_`, such as `LLAMA_DEPLOY_TIMEOUT`.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLAMA_DEPLOY_",
        validate_assignment=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    control_plane_url: Annotated[
        ServerUrl | Annotated[tuple[ServerUrl, ...], Field(min_length=1)], NoDecode, BeforeValidator(_split)
    ] = Field(default=ServerUrl("http://localhost:8000"), frozen=True)
    """The URL of the control plane, or the URLs of its replicas. In the environment, separate them with
    commas. The user and the password in `https://user:password@host` are sent as HTTP Basic Authorization;
    percent-encode their special characters."""
    api_key: SecretStr | None = Field(default=None, frozen=True)
    """Sent to the servers as `Authorization: Bearer ...`. None: the key in `api_key_file`, or no key."""
    api_key_file: Path | None = Field(default=None, frozen=True)
    """A file with the key, such as a mounted secret. It is read when a client is created. White space around
    the key is ignored."""
    headers: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_headers)] = Field(
        default={}, frozen=True
    )
    """More headers for every request. In the environment, a JSON object. They may hold secrets: they are
    never logged or printed."""
    ca: Path | None = Field(default=None, frozen=True)
    """A PEM file with the certificate authorities to trust. None: those of the system."""
    client_cert: Path | None = Field(default=None, frozen=True)
    """A PEM file with the certificate that the client shows to servers that require one. A changed file is
    used for new connections. None: it shows none."""
    client_key: Path | None = Field(default=None, frozen=True)
    """A PEM file with the key of `client_cert`, not encrypted. None: `client_cert` holds it too."""
    api_server_url: ServerUrl = Field(default=ServerUrl("http://localhost:4501"), frozen=True)
    """The URL of the API server. Only `client.apiserver` uses it."""
    disable_ssl: bool = Field(default=False, frozen=True)
    """Accept any certificate from an `https` server."""
    timeout: Annotated[float, BeforeValidator(_without_limit)] = Field(default=120.0, gt=0)
    """Seconds to wait for a result, and to retry while a server does not respond. None: without limit."""
    poll_interval: float = 0.5
    """Deprecated and ignored: the client does not poll. Kept for programs written for 0.6."""

    def connect_to(
        self,
        urls: str | Sequence[str],
        *,
        client_certificate: tuple[Path | str, Path | str] | None = None,
    ) -> ConnectionSettings:
        """Return how to reach a server. An `Authorization` header in `headers` replaces the API key.

        Args:
            urls: The URL of the server, or the URLs of its replicas.
            client_certificate: See `ConnectionSettings`. None: `client_cert` and `client_key`.

        Raises:
            ConfigError: A URL or a header is malformed, two settings contradict each other, or the file with
                the key cannot be read.
        """
        if self.ca is not None and self.disable_ssl:
            raise ConfigError("ca and disable_ssl=True contradict each other; pass only one of them")
        sent = {name: value.get_secret_value() for name, value in self.headers.items()}
        if "authorization" not in {name.lower() for name in sent} and (key := self._key()) is not None:
            sent["Authorization"] = f"Bearer {_one_word(key)}"
        return ConnectionSettings(
            urls=urls,
            headers=sent,
            ca=self.ca,
            client_certificate=client_certificate or self.client_certificate,
            verify_tls=not self.disable_ssl,
        )

    @property
    def client_certificate(self) -> tuple[Path, Path] | None:
        """The files of `client_cert` and `client_key`; None if there is no certificate.

        Raises:
            ConfigError: There is a key only.
        """
        if self.client_cert is not None:
            return self.client_cert, self.client_key or self.client_cert
        if self.client_key is not None:
            raise ConfigError(
                "client_key has no effect without client_cert; give the certificate of the key too"
            )
        return None

    def _key(self) -> str | None:
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        if self.api_key_file is None:
            return None
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
            raise ConfigError(
                f"the API key cannot be read from {str(self.api_key_file)!r} (api_key_file,"
                f" LLAMA_DEPLOY_API_KEY_FILE): {reason}"
            ) from exc


def _one_word(key: str) -> str:
    """Return a key that a header can carry. The error does not show it.

    Raises:
        ConfigError: It is not.
    """
    if _KEY.fullmatch(key):
        return key
    wrong = "is empty"
    if key:
        wrong = (
            "has a line break"
            if key.splitlines() != [key]
            else "has a space or a character that is not ASCII"
        )
    raise ConfigError(
        f"the API key {wrong}; pass it as api_key or LLAMA_DEPLOY_API_KEY on one line, without spaces. If"
        " it comes from a file, remove the line break at its end"
    )
