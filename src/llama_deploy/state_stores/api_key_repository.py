"""API keys in a state store. See `repositories` for what holds of all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import NamedTuple


class ApiKeyRecord(NamedTuple):
    """An API key."""

    key_id: str
    secret_hash: str
    """SHA-256 of the key, which itself is not stored."""
    name: str
    scopes: str
    """JSON list."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    tenant: str = ""
    subject: str | None = None
    """To whom its callers are bound within the tenant. None: to nobody."""


class ApiKeyRepository(ABC):
    """API keys, and the clock by which they expire."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time of the database server, which is the same for all control planes."""

    @abstractmethod
    def find(self, key_id: str) -> ApiKeyRecord | None:
        """Return a key, None if there is none with this id."""

    @abstractmethod
    def page(
        self,
        *,
        tenant: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[ApiKeyRecord]:
        """Return keys, the newest first, then by id from the last one.

        Args:
            tenant: Only those of this tenant. None: all.
            before: `created_at` and id of the last key of the page before.
            limit: The most keys to return.
        """

    @abstractmethod
    def count(self, tenant: str | None = None) -> int:
        """Return how many keys there are, ended ones included; with a tenant, how many it has."""

    @abstractmethod
    def insert(self, key: ApiKeyRecord) -> None:
        """Store a key.

        Raises:
            ConflictError: There is one with this id.
        """

    @abstractmethod
    def revoke(self, key_id: str, *, at: datetime) -> None:
        """Store when a key was revoked. It stays as it is if it was revoked before."""

    @abstractmethod
    def delete_ended(self, *, before: datetime, limit: int = 100) -> None:
        """Delete some keys that expired or were revoked earlier than this."""
