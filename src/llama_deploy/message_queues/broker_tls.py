"""TLS of the connections to networked brokers."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, model_validator

from llama_deploy.message_queues.broker_queue import BrokerQueueConfig
from llama_deploy.web.client_tls import RenewedContext, client_context
from llama_deploy.web.tls_reasons import tls_reason

_FIELDS: Final = ("tls_ca", "tls_cert", "tls_key")


class BrokerTlsConfig(BrokerQueueConfig):
    """Settings of a queue over a broker that may speak TLS."""

    tls_ca: Path | None = Field(default=None)
    """A PEM file with the certificate authorities to trust. None: those of the system. With it, the
    connections use TLS. Changed files are used for new connections, and never leave the process."""
    tls_cert: Path | None = Field(default=None)
    """A PEM file with the certificate that is shown to the broker. None: there is none."""
    tls_key: Path | None = Field(default=None)
    """A PEM file with the key of `tls_cert`, not encrypted. None: it is in the same file."""

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key has no effect without tls_cert; give the certificate of the key too")
        return self

    @property
    def tls_files(self) -> list[Path]:
        """The files that these settings name."""
        return [each for each in (self.tls_ca, self.tls_cert, self.tls_key) if each is not None]

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS of all connections of a driver.

        Raises:
            ConfigError: A file cannot be used.
        """

        def load() -> ssl.SSLContext:
            return client_context(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key, names=_FIELDS)

        return RenewedContext(load, self.tls_files)

    def public_settings(self) -> dict[str, Any]:
        """Return the settings without credentials, and without the files of this machine."""
        public = super().public_settings()
        return {name: value for name, value in public.items() if name not in _FIELDS}


def with_tls_reason(text: str, exc: BaseException) -> str:
    """Return the text of an error, with what to do if TLS is its cause."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return text if cause is None else f"{text} ({tls_reason(cause, ca='tls_ca')})"
