"""TLS of the connections that the project opens: authorities and certificates that may be renewed."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from llama_deploy.errors import ConfigError
from llama_deploy.web.changing_files import Stamp, stamp_of

if TYPE_CHECKING:
    from llama_deploy.web.connection_settings import ConnectionSettings

logger = logging.getLogger(__name__)

_MAX_REMEMBERED: Final = 8
"""How many certificates of a server are trusted that its file had before."""
_END: Final = "-----END CERTIFICATE-----"


class ClientTls:
    """What TLS checks and shows. Files that have changed are used from the next connection on. Thread-safe.

    Args:
        load: Reads the files. It raises `ConfigError` if one cannot be used. None is for the defaults.
        files: Those that are read.
    """

    def __init__(self, load: Callable[[], ssl.SSLContext | None], files: Sequence[Path | str]) -> None:
        self._load = load
        self._files = files
        self._lock = threading.Lock()
        self._is_loaded = False
        self._stamp: Stamp = ()
        self._context: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: ConnectionSettings) -> Self:
        """Return the TLS of connections over HTTP. If they are plain, no files are looked at."""
        speaks_tls = any(url.startswith("https:") for url in settings.urls)
        load = _TrustingAlsoBefore(settings) if settings.server_certificates else settings.tls_context
        return cls(load, settings.tls_files if speaks_tls else [])

    def current(self) -> ssl.SSLContext | None:
        """Return what the next connection is to use, None for the defaults: the same until a file changes.

        Raises:
            ConfigError: A file cannot be used, and none could before.
        """
        if self._is_loaded and (not self._files or stamp_of(self._files) == self._stamp):
            return self._context
        with self._lock:
            stamp = stamp_of(self._files)
            if not self._is_loaded:
                self._context = self._load()
            elif stamp != self._stamp:
                self._reload()
            self._stamp, self._is_loaded = stamp, True
            return self._context

    def _reload(self) -> None:
        try:
            self._context = self._load()
        except ConfigError as exc:
            logger.error(  # noqa: TRY400 - the text says all
                "the changed TLS files are not used, and those before stay: %s",
                exc,
                extra={"action": "tls_reload_failed"},
            )
        else:
            names = ", ".join(map(str, self._files))
            logger.info("TLS files are used from now on: %s", names, extra={"action": "tls_reloaded"})


class _TrustingAlsoBefore:
    """Trusts the certificates of servers, and those that their files had before.

    Until the key is there too, a server stays with the certificate before.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._before: list[str] = []

    def __call__(self) -> ssl.SSLContext | None:
        context = self._settings.tls_context()
        own = [first_certificate(each) for each in self._settings.server_certificates]
        before = [each for each in self._before if each not in own][-_MAX_REMEMBERED:]
        self._before = [*before, *own]
        if context is not None and before:
            context.load_verify_locations(cadata="\n".join(before))
        return context


class RenewedContext(ssl.SSLContext):
    """The TLS of a driver that keeps one context for all its connections, and opens them with asyncio.

    Files that have changed are used from the next connection on.

    Args:
        load: Reads the files. It raises `ConfigError` if one cannot be used.
        files: Those that are read.
    """

    def __new__(cls, load: Callable[[], ssl.SSLContext], files: Sequence[Path | str]) -> Self:
        """Create a context; see the class."""
        del load, files
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, load: Callable[[], ssl.SSLContext], files: Sequence[Path | str]) -> None:
        self._tls = ClientTls(load, files)
        first = self._tls.current()
        # Drivers ask for these.
        self.check_hostname = first is None or first.check_hostname
        self.verify_mode = ssl.CERT_REQUIRED if first is None else first.verify_mode

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext`."""
        context = self._tls.current()
        return super().wrap_bio(*args, **kwargs) if context is None else context.wrap_bio(*args, **kwargs)


def client_context(
    *, ca: Path | None, cert: Path | None, key: Path | None, names: tuple[str, str, str]
) -> ssl.SSLContext:
    """Return the TLS of a client.

    Args:
        ca: A PEM file with the authorities to trust. None: those of the system.
        cert: A PEM file with the certificate to show. None: there is none.
        key: A PEM file with its key. None: it is in the same file.
        names: What these are called, for errors.

    Raises:
        ConfigError: A file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as exc:  # also what OpenSSL raises
        raise ConfigError(
            f"{names[0]}={str(ca)!r} cannot be used: {exc}; give a PEM file with certificate authorities"
        ) from exc
    if cert is None:
        return context
    try:
        # A password keeps OpenSSL from asking for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except OSError as exc:
        raise ConfigError(
            f"{names[1]}={str(cert)!r} with {names[2]}={str(key or cert)!r} cannot be used: {exc}; give"
            " PEM files with a certificate and its unencrypted key"
        ) from exc
    return context


def trusting_only(certificates: Sequence[Path | str]) -> ssl.SSLContext:
    """Return the TLS of a client that accepts servers with one of these certificates, whatever names it has.

    Args:
        certificates: PEM files. The first certificate in each counts, not those of authorities behind it.

    Raises:
        ConfigError: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for each in certificates:
        try:
            context.load_verify_locations(cadata=first_certificate(each))
        except OSError as exc:
            raise ConfigError(f"{str(each)!r} holds no certificate that can be used: {exc}") from exc
    return context


def first_certificate(path: Path | str) -> str:
    """Return the first certificate of a PEM file.

    Raises:
        ConfigError: There is none.
    """
    try:
        text, end, _ = Path(path).read_text(encoding="latin-1").partition(_END)
    except OSError as exc:
        raise ConfigError(f"the certificate cannot be read from {str(path)!r}: {exc.strerror}") from exc
    _, begin, body = text.partition(_END.replace("END", "BEGIN"))
    if not begin or not end:
        raise ConfigError(f"{str(path)!r} holds no certificate; give a PEM file with one")
    return begin + body + end
