"""Find the state store for an address."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from llama_deploy.errors import ConfigError
from llama_deploy.renamed import see
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.extras import described, load_entry_point
from llama_deploy.web.shown_url import shown_scheme

ENTRY_POINT_GROUP = "llama_deploy.state_stores"
"""Packages declare their stores here: the scheme of the address = the class, a `StateStore`."""

_OF_0_6: Final = frozenset({"redis", "rediss", "unix", "mongodb+srv"})
"""Schemes of the key-value stores of 0.6."""


async def open_state_store(uri: str) -> StateStore:
    """Open the state store at `uri`, such as `sqlite:///data/control_plane.db`.

    The caller closes it.

    Raises:
        ConfigError: No installed store has this scheme, its package is faulty, or the address is invalid.
        StoreLockedError: Another control plane uses it, and the store takes only one.
        UnavailableError: The database does not answer.
    """
    return await _store_type(uri).connect(uri)


async def stored_schema_revision(uri: str) -> str | None:
    """Return the revision of the schema at `uri`, None if there is none. Changes nothing.

    Raises:
        ConfigError: No installed store has this scheme, its package is faulty, or the address is invalid.
        UnavailableError: The database does not answer.
    """
    return await _store_type(uri).schema_revision(uri)


def _store_type(uri: str) -> type[StateStore]:
    known = {found.name: found for found in entry_points(group=ENTRY_POINT_GROUP)}
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in known:
        # The rest of the address may hold a password.
        named = (
            f"the state store scheme {shown_scheme(uri)!r} is unknown"
            if separator
            else "the address has no scheme"
        )
        schemes = ", ".join(f"{name}://" for name in sorted(known)) or "none"
        old = f"; {see('State stores')}" if scheme in _OF_0_6 else ""
        raise ConfigError(f"{named}: a state store's address starts with one of: {schemes}{old}")
    return _load(known[scheme])


def _load(found: EntryPoint) -> type[StateStore]:
    loaded = load_entry_point(found, what="state store")
    if not (isinstance(loaded, type) and issubclass(loaded, StateStore)):
        raise ConfigError(f"the state store {found.name!r}: {described(found)} is not a StateStore")
    return loaded
