"""TLS of every server: a certificate that may be renewed, and the certificates that clients must show."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llama_deploy.errors import ConfigError
from llama_deploy.web.changing_files import Stamp, stamp_of

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
"""How long a client may take to agree on TLS."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files with which a server speaks TLS."""

    cert: Path
    """The certificate, followed by those of the authorities between it and a trusted one."""
    key: Path
    """Its key, which must not be encrypted."""
    client_ca: Path | None = None
    """The authorities one of which must have signed the certificate of a client. None: clients need none."""

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> Self | None:
        """Return the files that settings name; None if they name none.

        Raises:
            ConfigError: A file is missing in the settings.
        """
        if cert is not None and key is not None:
            return cls(cert, key, client_ca)
        if cert is None and key is None and client_ca is None:
            return None
        lacking = "tls_cert and tls_key" if cert is key is None else "tls_cert" if cert is None else "tls_key"
        raise ConfigError(
            f"a server that speaks TLS needs {lacking} too: PEM files with its certificate and its key"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The files under the names that they have in settings."""
        return {"tls_cert": self.cert, "tls_key": self.key, "tls_client_ca": self.client_ca}

    @property
    def all(self) -> Sequence[Path]:
        """The files."""
        return [each for each in (self.cert, self.key, self.client_ca) if each is not None]

    def load(self) -> ssl.SSLContext:
        """Return the TLS of a server with these files. A certificate that has expired is logged.

        Raises:
            ConfigError: A file cannot be used; the text names it.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        _check_pem(self.cert, "tls_cert", "CERTIFICATE", "the certificate of the server")
        _check_pem(self.key, "tls_key", "PRIVATE KEY", "the key of the certificate")
        try:
            # A password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except OSError as exc:  # also what OpenSSL raises
            if getattr(exc, "reason", None) == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"the key {str(self.key)!r} (tls_key) does not belong to the first certificate in"
                    f" {str(self.cert)!r} (tls_cert); give files that belong together"
                ) from exc
            raise ConfigError(
                f"the certificate {str(self.cert)!r} (tls_cert) with the key {str(self.key)!r} (tls_key)"
                f" cannot be used: {exc}; give PEM files with a certificate and its unencrypted key"
            ) from exc
        if self.client_ca is not None:
            self._ask_clients(context, self.client_ca)
        doubt = _doubt_of_clients(context, self.cert)
        if doubt is not None:
            logger.warning(
                "clients will refuse the certificate %s: %s; replace the file, which needs no restart",
                self.cert,
                doubt,
                extra={"action": "tls_certificate_invalid"},
            )
        return context

    def _ask_clients(self, context: ssl.SSLContext, client_ca: Path) -> None:
        _check_pem(client_ca, "tls_client_ca", "CERTIFICATE", "the authorities of client certificates")
        try:
            context.load_verify_locations(client_ca)
        except OSError as exc:
            raise ConfigError(
                f"{str(client_ca)!r} (tls_client_ca) holds no certificates that can be used: {exc}"
            ) from exc
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed would not be verified again, after the authority was changed.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET


class ServerTls:
    """The TLS of one server. Files that have changed are used from the next connection on.

    Args:
        files: The files. They are read here.
        admits_anonymous: Whether the handshake admits clients without a certificate even if they need one,
            because the server itself refuses them, and tells them why.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(self, files: TlsFiles, *, admits_anonymous: bool = False) -> None:
        self._files = files
        self._stamp: Stamp = stamp_of(files.all)
        self._current = files.load()
        self.context: Final = files.load()
        """What the server listens with."""
        self.context.sni_callback = self._use_current
        if admits_anonymous and self.asks_clients:
            # A connection keeps this when `_use_current` changes its context.
            self.context.verify_mode = ssl.CERT_OPTIONAL

    @property
    def asks_clients(self) -> bool:
        """Whether a client must show a certificate."""
        return self._files.client_ca is not None

    def wrap(self, client: socket.socket) -> ssl.SSLSocket:
        """Return TLS over the socket of a client, which agrees on it when it is first read."""
        return self.context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)

    @staticmethod
    def is_waiting(exc: OSError) -> bool:
        """Whether a socket of `wrap` that does not block has to be waited for."""
        return isinstance(exc, ssl.SSLWantReadError | ssl.SSLWantWriteError)

    def _use_current(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
    ) -> None:
        """Give a new connection the present certificate. OpenSSL calls this also without a name."""
        del name, context
        stamp = stamp_of(self._files.all)
        if stamp != self._stamp:
            self._stamp = stamp
            self._reload()
        connection.context = self._current

    def _reload(self) -> None:
        try:
            self._current = self._files.load()
        except ConfigError as exc:
            logger.error(  # noqa: TRY400 - the text says all
                "the changed TLS files are not used, and those before stay: %s",
                exc,
                extra={"action": "tls_reload_failed"},
            )
        else:
            logger.info(
                "TLS certificate %s is used from now on", self._files.cert, extra={"action": "tls_reloaded"}
            )


def _check_pem(path: Path, setting: str, content: str, what: str) -> None:
    """Check that a file can be read and has what it should.

    Raises:
        ConfigError: It has not.
    """
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{what} cannot be read from {str(path)!r} ({setting}): {exc.strerror}") from exc
    if f"{content}-----".encode() not in text:
        raise ConfigError(
            f"{str(path)!r} ({setting}) has no `-----BEGIN {content}-----`; give a PEM file with {what}"
        )
    if b"ENCRYPTED" in text and content == "PRIVATE KEY":
        raise ConfigError(
            f"the key in {str(path)!r} ({setting}) is encrypted; decrypt it, such as with"
            " `openssl pkey -in FILE -out FILE`, and protect the file by its permissions"
        )


def _doubt_of_clients(context: ssl.SSLContext, cert: Path) -> str | None:
    """Return why a client that trusts a certificate itself would still refuse it. None: it would not."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(2):  # the client has verified the certificate in the second round
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as exc:
                return exc.verify_message
            except ssl.SSLError:
                return None
    return None
