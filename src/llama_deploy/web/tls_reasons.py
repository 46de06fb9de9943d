"""Why a connection over TLS was not opened, and what to do, for the texts of errors."""

from __future__ import annotations

import ssl
from typing import Final

_EXPIRED: Final = 10
_WRONG_NAMES: Final = frozenset({62, 63, 64})
"""The numbers of X.509 errors in OpenSSL: hosts, mail addresses and IP addresses that do not match."""
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
_REQUIRED: Final = "TLSV13_ALERT_CERTIFICATE_REQUIRED"


def tls_reason(error: ssl.SSLError, *, ca: str = "ca (LLAMA_DEPLOY_CA)") -> str:
    """Return why TLS has failed, and what to do.

    Args:
        error: The error of OpenSSL.
        ca: How the authorities to trust are set.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification_reason(error, ca)
    if error.reason in _NO_TLS:
        return "the server does not speak TLS at this port"
    if error.reason == _REQUIRED:
        return "the server requires a client certificate"
    if error.reason is not None and "ALERT" in error.reason and "CERTIFICATE" in error.reason:
        return f"the server refuses the client certificate: {error}"
    return str(error)


def _verification_reason(error: ssl.SSLCertVerificationError, ca: str) -> str:
    found = error.verify_message.rstrip(".")
    if error.verify_code in _WRONG_NAMES:
        return f"{found}; connect to a name that is in the certificate"
    if error.verify_code == _EXPIRED:
        return f"{found}; renew the certificate of the server"
    return (
        f"the certificate of the server is not trusted: {found}; set {ca} to a PEM file with the authority"
        " that has signed it"
    )
