"""How to reach a server: one value for every connection that the project opens over HTTP."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llama_deploy.errors import ConfigError
from llama_deploy.web.client_tls import trusting_only
from llama_deploy.web.server_url import ServerUrl

if TYPE_CHECKING:
    from pydantic import SecretStr

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds for an answer, beyond what the server was asked to wait."""

_UNLIMITED: Final = 1e9
"""Seconds that never pass."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
"""Other characters are encoded in one way by one HTTP library, and in another way by the next."""


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
    """The base URLs of a server's replicas. The first is used; when one cannot be reached, the next. The user
    and the password in `https://user:password@host` are sent as HTTP Basic Authorization, and not shown."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Sent with every request. They may hold secrets, so they appear in no `repr`, log or error."""
    ca: Path | str | None = None
    """A PEM file with the certificate authorities to trust. None: those of the system."""
    client_certificate: tuple[Path | str, Path | str] | None = None
    """PEM files with the certificate that identifies this client, and with its key, which must not be
    encrypted. None: the client shows no certificate."""
    verify_tls: bool = True
    """False accepts every certificate of the server."""
    server_certificates: Sequence[Path | str] = ()
    """PEM files with the certificates of the servers themselves. Servers with other ones are refused, and
    names are not compared. Used in place of `ca`, `verify_tls` and `tls`. Empty: the others count."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """Used in place of a context made from `ca` and `verify_tls`. A client certificate is loaded into it."""
    owner_headers: Callable[[], Mapping[str, str]] | None = field(default=None, repr=False, compare=False)
    """Returns headers that say for whom a request acts, see `web.step_clients`. None: for whom the key is."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds until an answer is complete; for a stream, between two parts of it."""

    def __post_init__(self) -> None:
        urls = tuple(map(_checked, [self.urls] if isinstance(self.urls, str) else self.urls))
        if not urls:
            raise ConfigError("no URL to connect to; give at least one")
        object.__setattr__(self, "urls", urls)
        object.__setattr__(self, "server_certificates", tuple(self.server_certificates))
        self._check_headers(any(url.authorization for url in urls))
        if self.ca is not None and not self.verify_tls:
            raise ConfigError("ca and verify_tls=False contradict each other; give one of them")
        if self.tls is not None and (self.ca is not None or not self.verify_tls):
            raise ConfigError("tls replaces ca and verify_tls; give either tls or the others")

    def _check_headers(self, has_credentials: bool) -> None:  # noqa: FBT001 - private
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ConfigError(
                    f"the header {name!r} has a name or value that HTTP cannot carry; write both on one line,"
                    " in printable ASCII"
                )
        if has_credentials and "authorization" in {name.lower() for name in self.headers}:
            raise ConfigError(
                "the URL to connect to holds credentials, and there is also an API key or a header"
                " 'Authorization'; give only one of them"
            )

    def with_api_key(self, key: SecretStr | None) -> ConnectionSettings:
        """Return settings that send a key, unless they send a header `Authorization` or there is no key."""
        if key is None or "authorization" in {name.lower() for name in self.headers}:
            return self
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {key.get_secret_value()}"})

    def trusting_like(self, other: ConnectionSettings) -> ConnectionSettings:
        """Return settings that trust the certificates that other settings know of the same servers."""
        if self.urls != other.urls or not self.has_default_trust:
            return self
        return replace(self, server_certificates=other.server_certificates)

    @property
    def has_default_trust(self) -> bool:
        """Whether the authorities of the system say which servers are trusted."""
        return self.verify_tls and self.ca is None and self.tls is None and not self.server_certificates

    @property
    def tls_files(self) -> Sequence[Path | str]:
        """The files that `tls_context` reads."""
        trusted = self.server_certificates or ([] if self.ca is None else [self.ca])
        return [*trusted, *(self.client_certificate or ())]

    @property
    def tls_kwargs(self) -> dict[str, Any]:
        """What says of TLS how to reach another server in the same way, for `from_client_kwargs`."""
        return {
            "verify": self.tls or self.ca or self.verify_tls,
            "cert": self.client_certificate,
            "server_certificates": self.server_certificates,
        }

    def has_key_of(self, other: ConnectionSettings) -> bool:
        """Whether requests show the same key as those of other settings; without one, go to the same URLs."""
        key, others = (settings._keys() for settings in (self, other))  # noqa: SLF001 - of its own class
        return not key.isdisjoint(others) if key or others else self.urls == other.urls

    def without_key(self) -> ConnectionSettings:
        """Return settings without a header `Authorization`."""
        kept = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        return replace(self, headers=kept)

    def _keys(self) -> set[str]:
        sent = {value for name, value in self.headers.items() if name.lower() == "authorization"}
        return sent.union(filter(None, (getattr(url, "authorization", None) for url in self.urls)))

    def headers_for(self, url: str) -> Mapping[str, str]:
        """Return what is sent with every request to one of `urls`."""
        authorization = url.authorization if isinstance(url, ServerUrl) else None
        headers = {**self.headers, "Authorization": authorization} if authorization else self.headers
        return headers if self.owner_headers is None else {**headers, **self.owner_headers()}

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
            kwargs: These are read; all others are returned.
                `headers`: A mapping.
                `timeout`: Seconds, or None for no limit.
                `cert`: The path of a PEM file with a certificate and its key, or the paths of both.
                `verify`: True, False, the path of a file with certificate authorities, or an `SSLContext`.
                `server_certificates`: See there.

        Raises:
            ConfigError: The URL or one of these arguments cannot be used.
        """
        options = dict(kwargs)
        verify = options.pop("verify", True)
        if not isinstance(verify, bool | str | Path | ssl.SSLContext):
            raise ConfigError("verify must be True, False, the path of a CA file, or an ssl.SSLContext")
        settings = cls(
            urls=[url],
            headers=_headers(options.pop("headers", None)),
            ca=verify if isinstance(verify, str | Path) else None,
            client_certificate=_client_certificate(options.pop("cert", None)),
            verify_tls=verify is not False,
            server_certificates=options.pop("server_certificates", ()),
            tls=verify if isinstance(verify, ssl.SSLContext) else None,
            timeout=_timeout(options.pop("timeout", DEFAULT_TIMEOUT)),
        )
        return settings, options

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what TLS is to check and to show, None for the defaults. Reads the files.

        Raises:
            ConfigError: A file cannot be used.
        """
        if self.has_default_trust and self.client_certificate is None:
            return None
        context = self._trust()
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

    def _trust(self) -> ssl.SSLContext:
        """Return what says which servers are trusted.

        Raises:
            ConfigError: A file cannot be used.
        """
        if self.server_certificates:
            return trusting_only(self.server_certificates)
        if self.tls is not None:
            return self.tls
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as exc:  # also what OpenSSL raises
            raise ConfigError(f"ca={str(self.ca)!r} holds no certificates that can be used: {exc}") from exc
        if not self.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


ClientCertificate: TypeAlias = tuple[Path | str, Path | str]
"""PEM files with a certificate, and with its unencrypted key."""
Address: TypeAlias = str | Sequence[str] | ConnectionSettings
"""Where a server is: its URL, the URLs of its replicas, or settings."""


def _checked(url: str) -> ServerUrl:
    """Return a URL to connect to. Errors do not show it: it may hold secrets."""
    checked = ServerUrl(url)
    if checked.problem is not None:
        raise ConfigError(f"the URL to connect to {checked.problem}; write it as http://host:port")
    return checked


def _headers(value: Any) -> dict[str, str]:
    """Return the argument `headers`."""
    try:
        headers = dict(value or {})
    except (TypeError, ValueError):
        headers = {None: None}
    if not all(isinstance(text, str) for pair in headers.items() for text in pair):
        raise ConfigError("headers must be a mapping of names to values, all of them strings")
    return headers


def _client_certificate(value: Any) -> tuple[Path | str, Path | str] | None:
    """Return the argument `cert` as the files with the certificate and its key."""
    if value is None:
        return None
    files = (value, value) if isinstance(value, str | Path) else value
    if not isinstance(files, tuple | list) or [isinstance(file, str | Path) for file in files] != [True] * 2:
        raise ConfigError("cert must be the path of a PEM file with a certificate and its key, or both paths")
    certificate, key = files
    return certificate, key


def _timeout(value: Any) -> float:
    """Return the argument `timeout` as seconds."""
    if value is None:
        return _UNLIMITED
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError("timeout must be a positive number of seconds, or None for no limit")
    return float(value)
