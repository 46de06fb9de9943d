"""Tokens for one resource: their form, and the signature.

A token names the API key that has issued it and is signed with a secret that is derived from the stored hash
of that key. So it ends with its key, and no other secret has to be stored. It also names the owner of the
resource, because some keys may act for others. Tokens of the first format do not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_deploy.printable import has_controls
from llama_deploy.types.callers import Resource, ResourceKind
from llama_deploy.types.epoch import from_microseconds, to_microseconds
from llama_deploy.types.ids import check_id
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.owners import Owner, is_subject, is_tenant
from llama_deploy.web.edge.bearer_tokens import TOKEN_PREFIX

_FORMAT: Final = 2
_WITHOUT_OWNER: Final = 1
"""The format of tokens that are for the owner of their key."""
_KEY_ID: Final = re.compile(r"[0-9a-f]{12}")
_PURPOSE: Final = b"llama_deploy token 1:"


@dataclass(frozen=True, slots=True)
class ResourceToken:
    """What a token says."""

    key_id: str
    """The key that has issued it."""
    resource: Resource
    scopes: frozenset[str]
    expires_at: datetime
    owner: Owner | None
    """Whose the resource is. None: it is not said, as in the first format."""

    def signed(self, secret_hash: str) -> str:
        """Return the token as callers send it.

        Args:
            secret_hash: That of the key, as in its record.
        """
        payload = _encoded(
            json.dumps(
                [
                    _WITHOUT_OWNER if self.owner is None else _FORMAT,
                    self.key_id,
                    self.resource.kind,
                    self.resource.id,
                    sorted(self.scopes),
                    to_microseconds(self.expires_at),
                    *(self.owner or ()),
                ],
                separators=(",", ":"),
            ).encode()
        )
        return f"{TOKEN_PREFIX}{payload}.{_encoded(_signature(payload, secret_hash))}"


def read_token(token: str) -> ResourceToken | None:
    """Return what a token says, before its signature is checked. None: it is malformed."""
    payload = token.removeprefix(TOKEN_PREFIX).partition(".")[0]
    try:
        values: Any = json.loads(_decoded(payload))
        format_, key_id, kind, id_, scopes, expires, *rest = values
        # Anybody can write one. Its texts go to the store before its signature can be checked.
        types = [type(each) for each in values]
        if types[:6] != [int, str, str, str, list, int] or format_ != (_FORMAT if rest else _WITHOUT_OWNER):
            return None
        owner = _owner(*rest) if rest else None
        if (
            not _KEY_ID.fullmatch(key_id)
            or has_controls(id_)
            or not all(type(each) is str for each in scopes)
        ):
            return None
        resource = Resource(ResourceKind(kind), check_id(id_))
        return ResourceToken(key_id, resource, frozenset(scopes), from_microseconds(expires), owner)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        return None


def _owner(tenant: object, subject: object) -> Owner:
    """Return the owner that a token names.

    Raises:
        ValueError: It cannot be one.
    """
    if (tenant == DEFAULT_TENANT or is_tenant(tenant)) and (subject is None or is_subject(subject)):
        return Owner(str(tenant), subject)
    raise ValueError(f"{tenant!r} and {subject!r} are not an owner")


def is_signed_by(token: str, secret_hash: str) -> bool:
    """Whether a token has the signature of the key with this hash."""
    payload, _, signature = token.removeprefix(TOKEN_PREFIX).partition(".")
    expected = _encoded(_signature(payload, secret_hash))
    return hmac.compare_digest(expected.encode(), signature.encode())


def _signature(payload: str, secret_hash: str) -> bytes:
    secret = hmac.digest(bytes.fromhex(secret_hash), _PURPOSE, hashlib.sha256)
    return hmac.digest(secret, payload.encode(), hashlib.sha256)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
