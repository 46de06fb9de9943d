"""How to reach a server: one value for every connection that the project opens over HTTP."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from llama_deploy.errors import ConfigError

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds for an answer, beyond what the server was asked to wait."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00\r\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How to reach a server.

    Example:
        ```python
        ConnectionSettings(
            urls=["https://plane-1.example", "https://plane-2.example"],
            headers={"Authorization": "Bearer ..."},
            ca="company-ca.pem",
        )
        ```

    Raises:
        ConfigError: A URL or a header is malformed, or two settings contradict each other.
    """

    urls: Sequence[str]
    """The base URLs of a server's replicas. The first is used; when one cannot be reached, the next."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Sent with every request. They may hold secrets, so they appear in no `repr`, log or error."""
    ca: Path | str | None = None
    """A PEM file with the certificate authorities to trust. None: those of the system."""
    client_certificate: tuple[Path | str, Path | str] | None = None
    """PEM files with the certificate that identifies this client, and with its key, which must not be
    encrypted. None: the client shows no certificate."""
    verify_tls: bool = True
    """False accepts every certificate of the server."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds until an answer is complete; for a stream, between two parts of it."""

    def __post_init__(self) -> None:
        urls = tuple(map(_check_url, [self.urls] if isinstance(self.urls, str) else self.urls))
        if not urls:
            raise ConfigError("no URL to connect to; give at least one")
        object.__setattr__(self, "urls", urls)
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ConfigError(f"the header {name!r} has a name or value that HTTP cannot carry")
        if self.ca is not None and not self.verify_tls:
            raise ConfigError("ca and verify_tls=False contradict each other; give one of them")

    @classmethod
    def of(cls, address: Address) -> ConnectionSettings:
        """Return settings for one URL, for several, or `address` itself if it is settings already."""
        if isinstance(address, ConnectionSettings):
            return address
        return cls(urls=[address] if isinstance(address, str) else address)

    @classmethod
    def from_client_kwargs(
        cls, url: str, kwargs: Mapping[str, Any]
    ) -> tuple[ConnectionSettings, dict[str, Any]]:
        """Split arguments in the form of 0.6 into settings and further arguments of `aiohttp.ClientSession`.

        Args:
            url: The base URL.
            kwargs: `headers`, `timeout` and `cert` (a certificate and its key) are read, and `verify`: False,
                or the path of a file with certificate authorities.
        """
        options = dict(kwargs)
        verify = options.pop("verify", True)
        settings = cls(
            urls=[url],
            headers=dict(options.pop("headers", None) or {}),
            ca=verify if isinstance(verify, str | Path) else None,
            client_certificate=options.pop("cert", None),
            verify_tls=verify is not False,
            timeout=float(options.pop("timeout", DEFAULT_TIMEOUT)),
        )
        return settings, options

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what TLS is to check and to show, None for the defaults. Reads the files.

        Raises:
            ConfigError: A file cannot be used.
        """
        if self.verify_tls and self.ca is None and self.client_certificate is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as exc:  # also what OpenSSL raises
            raise ConfigError(f"ca={str(self.ca)!r} holds no certificates that can be used: {exc}") from exc
        if not self.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_certificate is not None:
            certificate, key = self.client_certificate
            try:
                # A password keeps OpenSSL from asking for one at the terminal.
                context.load_cert_chain(certificate, key, password="")
            except OSError as exc:
                raise ConfigError(
                    f"client_certificate=({str(certificate)!r}, {str(key)!r}) cannot be used: {exc}; give a"
                    " certificate and its unencrypted key, both as PEM files"
                ) from exc
        return context


Address: TypeAlias = str | Sequence[str] | ConnectionSettings
"""Where a server is: its URL, the URLs of its replicas, or settings."""


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ConfigError("the URL to connect to is malformed; write it as http://host:port") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the URL of {parts.hostname} holds credentials, which would appear in errors; give them as"
            " headers={'Authorization': ...}"
        )
    if not usable or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is not the base URL of a server; write it as http://host:port")
    return url.rstrip("/")
