"""Who has an API key."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from llama_deploy.control_plane.requests.callers.resource_tokens import is_signed_by, read_token
from llama_deploy.state_stores.api_key_repository import ApiKeyRecord
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.callers import Caller
from llama_deploy.types.tokens import TOKEN_SCOPES
from llama_deploy.web.edge.acting import may_act
from llama_deploy.web.edge.bearer_tokens import TOKEN_PREFIX

KNOWN_SECONDS: Final = 5.0
"""After how many seconds a key is looked up again, in case no notice of its revocation arrives."""
MAX_KNOWN_KEYS: Final = 10_000

_FORM: Final = re.compile(r"llama_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")


def hash_of(key: str) -> bytes:
    """Return the hash of a key. The key is random and has 256 bits, so a slow hash would protect nothing."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was valid when it was looked up."""

    caller: Caller
    until: float
    """When it has to be looked up again."""


class KeyCallers:
    """Knows the callers of the keys in a state store.

    A key is known for some seconds, so that few requests read the store. `forget` tells that one may have
    been revoked.

    Args:
        store: Has the keys.
        clock: Returns seconds that only grow.
    """

    def __init__(self, store: StateStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._forgotten = 0
        """How often `forget` was called."""

    async def caller_of(self, key: str) -> Caller | None:
        """Return who has this key. None: it is unknown, malformed, expired or revoked.

        Raises:
            UnavailableError: The store does not answer, and the key was not looked up in the last seconds.
        """
        digest = hash_of(key)
        known = self._known.get(digest)
        if known is not None and self._clock() < known.until:
            return known.caller
        key_id = _key_id_in(key)
        if key_id is None:
            return None
        looking = self._looking.get(digest)
        if looking is None:
            looking = asyncio.create_task(self._look_up(key, key_id, digest), name="key look-up")
            self._looking[digest] = looking
            looking.add_done_callback(lambda done: self._note_end(digest, done))
        return await asyncio.shield(looking)

    def has_seen(self, key: str) -> bool:
        """Whether the key was valid when it was last looked up."""
        return hash_of(key) in self._known

    def forget(self) -> None:
        """Look up all keys again: one of them may have been revoked."""
        self._forgotten += 1
        for digest, known in self._known.items():
            self._known[digest] = replace(known, until=-1.0)
        # A look-up under way may have read the key as it was before.
        self._looking.clear()

    async def _look_up(self, key: str, key_id: str, digest: bytes) -> Caller | None:
        forgotten, began = self._forgotten, self._clock()
        record, now = await self._store.read(lambda tx: (tx.api_keys.find(key_id), tx.api_keys.now()))
        found = None if record is None else judge(key, record, now)
        if found is None:
            self._known.pop(digest, None)
            return None
        caller, expires_at = found
        if forgotten == self._forgotten:
            left = KNOWN_SECONDS
            if expires_at is not None:
                left = min(left, (expires_at - now).total_seconds())
            self._known[digest] = _Known(caller, began + left)
            while len(self._known) > MAX_KNOWN_KEYS:
                self._known.popitem(last=False)
        return caller

    def _note_end(self, digest: bytes, looking: asyncio.Task[Caller | None]) -> None:
        if self._looking.get(digest) is looking:
            del self._looking[digest]
        if not looking.cancelled():
            looking.exception()  # whoever waits gets it; perhaps nobody does any more


def judge(key: str, record: ApiKeyRecord, now: datetime) -> tuple[Caller, datetime | None] | None:
    """Return who has a key or a token, and when it expires. None: it is not valid.

    Args:
        key: What the caller has sent.
        record: The API key that it names.
        now: The time of the store.
    """
    if record.revoked_at is not None or (record.expires_at is not None and now >= record.expires_at):
        return None
    scopes = frozenset(json.loads(record.scopes))
    is_bound = record.subject is not None
    name = record.subject or f"key {record.key_id}"
    owner = Caller(name, record.tenant, scopes, key_id=record.key_id, is_bound=is_bound)
    if not key.startswith(TOKEN_PREFIX):
        is_same = hmac.compare_digest(bytes.fromhex(record.secret_hash), hash_of(key))
        return (owner, record.expires_at) if is_same else None
    token = read_token(key)
    if token is None or not is_signed_by(key, record.secret_hash) or now >= token.expires_at:
        return None
    of = owner.owner if token.owner is None else token.owner
    # A token that names no owner may be for a resource of another one than the key's.
    if may_act(owner) if token.owner is None else (of != owner.owner and not may_act(owner)):
        return None
    granted = token.scopes & TOKEN_SCOPES
    if not owner.may_do_all:
        granted &= scopes
    ends = [each for each in (token.expires_at, record.expires_at) if each is not None]
    name = of.subject or f"token of key {record.key_id}"
    is_bound = of.subject is not None
    return Caller(name, of.tenant, granted, resource=token.resource, is_bound=is_bound), min(ends)


def _key_id_in(key: str) -> str | None:
    """Return the API key that a key or a token names, None if it is malformed."""
    if key.startswith(TOKEN_PREFIX):
        token = read_token(key)
        return None if token is None else token.key_id
    form = _FORM.fullmatch(key)
    return None if form is None else form["id"]
