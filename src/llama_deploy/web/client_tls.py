"""TLS of the connections that the project opens: authorities and certificates that may be renewed."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
        settings: Name the files.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        # A process that speaks plain HTTP looks at no files.
        speaks_tls = any(url.startswith("https:") for url in settings.urls)
        self._files = settings.tls_files if speaks_tls else []
        self._lock = threading.Lock()
        self._is_loaded = False
        self._stamp: Stamp = ()
        self._context: ssl.SSLContext | None = None
        self._remembered: dict[str, None] = {}

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

    def _load(self) -> ssl.SSLContext | None:
        context = self._settings.tls_context()
        if context is None or not self._settings.server_certificates:
            return context
        # Until its key is there too, a server stays with the certificate before.
        own = [first_certificate(each) for each in self._settings.server_certificates]
        remembered = [each for each in self._remembered if each not in own][-_MAX_REMEMBERED:]
        self._remembered = dict.fromkeys([*remembered, *own])
        for each in remembered:
            context.load_verify_locations(cadata=each)
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
