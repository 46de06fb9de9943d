"""Signatures of stored text: without a key, it can neither be written nor moved to another place."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from pydantic import SecretStr

from llama_deploy.errors import ConfigError, SignatureError

_SCHEME: Final = b"llama-deploy-signature-1"
"""Part of what is signed, so that a signature made for another purpose is not valid."""
_MIN_KEY_BYTES: Final = 16
_ID_BYTES: Final = 4


class Signer:
    """Signs with HMAC-SHA-256 (RFC 2104) and verifies in constant time.

    A signature is `{key id}.{mac}`: eight hexadecimal digits that identify the key without revealing it, and
    43 characters of URL-safe base64.

    Args:
        keys: The first key signs, all keys verify. To change the key, put the new one first, and keep the old
            one until everything that it signed was written again.

    Raises:
        ConfigError: There is no key, or one is shorter than 16 bytes.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[SecretStr | bytes]) -> None:
        secrets = [key if isinstance(key, bytes) else key.get_secret_value().encode() for key in keys]
        if not secrets:
            raise ConfigError("a signer needs at least one key")
        if any(len(secret) < _MIN_KEY_BYTES for secret in secrets):
            raise ConfigError(
                f"a signing key needs at least {_MIN_KEY_BYTES} bytes; create one with `openssl rand -hex 32`"
            )
        self._keys = [(_id_of(secret), secret) for secret in secrets]

    def __repr__(self) -> str:
        return f"Signer(key_ids={[key_id for key_id, _ in self._keys]})"

    def sign(self, text: str, *, context: str) -> str:
        """Return the signature of a text for one place.

        Args:
            text: What is signed.
            context: The place, such as the kind and the id of a session. The signature is valid only there.
        """
        return _signature(*self._keys[0], text, context)

    def verify(self, text: str, signature: str, *, context: str) -> None:
        """Check that this text was signed for this place with one of the keys.

        Raises:
            SignatureError: It was not. The text says whether the signature is invalid or missing, as it is
                missing in what was stored before there were keys.
        """
        if not signature:
            raise SignatureError(
                f"{context} cannot be trusted: it is not signed: it was stored before this service had keys,"
                " or by an instance without keys; start a new session or task",
                context=context,
            )
        given = signature.encode("utf-8", "surrogatepass")
        # All are computed, so that the time does not reveal which key it was.
        matching = [
            hmac.compare_digest(_signature(*key, text, context).encode(), given) for key in self._keys
        ]
        if any(matching):
            return
        key_id = signature.partition(".")[0]
        known = any(key_id == own for own, _ in self._keys)
        raise SignatureError(
            f"the signature of {context} is not valid: "
            + (
                "the data was changed, or was written for another place"
                if known
                else "it was made with a key that is not configured here; add that key to the keys"
            ),
            context=context,
        )


def _id_of(key: bytes) -> str:
    return hmac.digest(key, _SCHEME + b" key id", hashlib.sha256)[:_ID_BYTES].hex()


def _signature(key_id: str, key: bytes, text: str, context: str) -> str:
    place = context.encode("utf-8", "surrogatepass")
    # The length separates the place from the text.
    head = _SCHEME + len(place).to_bytes(8) + place
    mac = hmac.digest(key, head + text.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"{key_id}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
