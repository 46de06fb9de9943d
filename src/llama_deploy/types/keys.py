"""Keys of sessions and tasks: one text for a tenant and the id that a client sees.

Rows, messages, locks and notices use keys, and only the edge translates between keys and ids. In the default
tenant, the empty string, the key is the id itself. See docs/decisions/0013-internal-keys.md.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from llama_deploy.types.ids import ID_PATTERN, MAX_ID_LENGTH, check_id

SEPARATOR: Final = "\x1f"
"""Between tenant and id. Neither may contain it."""
DEFAULT_TENANT: Final = ""

Id = Annotated[
    str,
    AfterValidator(check_id),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH, "pattern": ID_PATTERN}),
]
"""The id of a session, a task or an instance in a request or an answer."""


def internal_key(tenant: str, public_id: str) -> str:
    """Return the key of a session or task.

    Raises:
        ValueError: The tenant or the id contains the separator.
    """
    if SEPARATOR in tenant or SEPARATOR in public_id:
        raise ValueError(
            f"an id must not contain the character U+{ord(SEPARATOR):04X}, as {public_id!r} does"
        )
    return f"{tenant}{SEPARATOR}{public_id}" if tenant else public_id


def public_id(key: str) -> str:
    """Return the id that belongs to a key."""
    return key.rpartition(SEPARATOR)[2]


def tenant_of(key: str) -> str:
    """Return the tenant to which a key belongs."""
    return key.rpartition(SEPARATOR)[0]


class ForeignKeyError(Exception):
    """A programming error: an id was not translated, or a key of another tenant was used."""


def check_tenant(tenant: str, *keys: str | None) -> None:
    """Do nothing if keys belong to a tenant, or are None.

    Raises:
        ForeignKeyError: One does not.
    """
    for key in keys:
        if key is not None and tenant_of(key) != tenant:
            raise ForeignKeyError(f"{public_id(key)!r} is not the key of a row of this tenant")


def _key_in_default_tenant(public_id: str) -> str:
    return internal_key(DEFAULT_TENANT, public_id)


Key = Annotated[Id, AfterValidator(_key_in_default_tenant)]
"""An id in a query, translated to its key."""
PathKey = Annotated[Key, BeforeValidator(unquote)]
"""An id in a path, which is routed as it was sent, percent-encoded."""
