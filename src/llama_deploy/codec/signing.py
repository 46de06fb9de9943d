"""Signatures of stored text: who holds no key can neither write it nor move it to another place."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from pydantic import SecretStr

from llama_deploy.errors import ConfigError, SignatureError

_SCHEME: Final = b"llama-deploy-signature-1"
"""Part of what is signed, so that no signature made for something else fits."""
_SHORTEST_KEY: Final = 16
_ID_BYTES: Final = 4


class Signer:
    """Signs with HMAC-SHA-256 (RFC 2104) and verifies in constant time.

    A signature is `{key id}.{mac}`: eight hexadecimal digits that tell the keys apart and say nothing of
    them, and 43 characters of URL-safe base64.

    Args:
        keys: The first signs, all verify. To change the key, put the new one in front and leave the old one
            until all that it signed has been written anew.

    Raises:
        ConfigError: There is no key, or one is shorter than 16 bytes.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[SecretStr | bytes]) -> None:
        secrets = [key if isinstance(key, bytes) else key.get_secret_value().encode() for key in keys]
        if not secrets:
            raise ConfigError("a signer needs at least one key")
        if any(len(secret) < _SHORTEST_KEY for secret in secrets):
            raise ConfigError(
                f"a signing key has at least {_SHORTEST_KEY} bytes; `openssl rand -hex 32` makes a good one"
            )
        self._keys = [(_id_of(secret), secret) for secret in secrets]

    def __repr__(self) -> str:
        return f"Signer(key_ids={[key_id for key_id, _ in self._keys]})"

    def sign(self, text: str, *, context: str) -> str:
        """Return the signature of a text that stands in one place only.

        Args:
            text: What is signed.
            context: The place, such as the kind and the id of a session. The signature does not fit another.
        """
        return _signature(*self._keys[0], text, context)

    def verify(self, text: str, signature: str, *, context: str) -> None:
        """Check that a holder of one of the keys signed this text for this place.

        Raises:
            SignatureError: Nobody did. An empty signature has a text of its own: what was stored before there
                were keys has none.
        """
        if not signature:
            raise SignatureError(
                f"{context} cannot be trusted: it is not signed: it was stored before this service had keys,"
                " or by an instance without; begin anew",
                context=context,
            )
        given = signature.encode("utf-8", "surrogatepass")
        # All are computed, so that the time says nothing of which key it was.
        fitting = [hmac.compare_digest(_signature(*key, text, context).encode(), given) for key in self._keys]
        if any(fitting):
            return
        key_id = signature.partition(".")[0]
        known = any(key_id == own for own, _ in self._keys)
        raise SignatureError(
            f"the signature of {context} does not fit: "
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
    # The length keeps the end of the one from being taken for the beginning of the other.
    head = _SCHEME + len(place).to_bytes(8) + place
    mac = hmac.digest(key, head + text.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"{key_id}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
