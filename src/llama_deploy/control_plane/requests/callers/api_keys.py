"""Requests for API keys: create, list and revoke them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.control_plane.requests.callers.key_callers import KeyCallers, hash_of
from llama_deploy.control_plane.requests.callers.resource_tokens import ResourceToken
from llama_deploy.control_plane.storage.audit_rows import audit_record
from llama_deploy.errors import ApiKeyNotFoundError, ConflictError, PermissionDeniedError
from llama_deploy.state_stores.api_key_repository import ApiKeyRecord
from llama_deploy.state_stores.base import Notice, StateStore, StoreTransaction
from llama_deploy.types.api_keys import ApiKeyPage, ApiKeyView, CreatedApiKey, NewApiKey
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.callers import OPERATOR_SCOPES, Caller, Resource
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.tokens import CreatedToken, NewToken

MAX_KEYS: Final = 10_000
"""How many keys there may be."""
MAX_TENANT_KEYS: Final = 1_000
"""How many of them a tenant may have."""
MAX_KEY_PAGE: Final = 200
"""How many keys a page may have."""

_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_KEPT_AFTER_END: Final = timedelta(days=90)
"""How long a key is listed after it has expired or was revoked."""
_LIST: Final = {"list": "keys"}


def api_key_view(key: ApiKeyRecord) -> ApiKeyView:
    """Return a key as administrators see it."""
    return ApiKeyView(
        key_id=key.key_id,
        name=key.name,
        tenant=key.tenant,
        subject=key.subject,
        scopes=json.loads(key.scopes),
        created_at=key.created_at,
        created_by=key.created_by,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
    )


class ApiKeys:
    """The keys in a state store, for administrators. Their times are those of the store's clock.

    Args:
        store: Has the keys.
        callers: Is told that a key was revoked.
    """

    def __init__(self, store: StateStore, callers: KeyCallers) -> None:
        self._store = store
        self._callers = callers

    async def create(
        self, new: NewApiKey, *, by: str, tenant: str | None = None, actor: Actor | None = None
    ) -> CreatedApiKey:
        """Create a key.

        Args:
            new: What it is to be.
            by: The name of the caller who asks for it.
            tenant: The only tenant whose keys the caller may create. None: those of any.
            actor: Who is named in the audit log. None: nobody.

        Raises:
            PermissionDeniedError: It is to be a key of another tenant, or to have a scope that no key of a
                tenant has.
            ConflictError: There are too many keys.
            UnavailableError: The store does not answer.
        """
        if tenant is not None:
            new = _of_tenant(new, tenant)
        key_id = secrets.token_hex(_ID_BYTES)
        key = f"llama_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"

        def work(tx: StoreTransaction) -> ApiKeyRecord:
            now = tx.api_keys.now()
            tx.api_keys.delete_ended(before=now - _KEPT_AFTER_END)
            if tx.api_keys.count() >= MAX_KEYS:
                raise ConflictError(
                    f"there are {MAX_KEYS} keys already; revoke some, which make room after"
                    f" {_KEPT_AFTER_END.days} days"
                )
            if new.tenant is not None and tx.api_keys.count(new.tenant) >= MAX_TENANT_KEYS:
                raise ConflictError(
                    f"the tenant has {MAX_TENANT_KEYS} keys already; revoke some, which make room after"
                    f" {_KEPT_AFTER_END.days} days"
                )
            lifetime = new.expires_in_seconds
            record = ApiKeyRecord(
                key_id=key_id,
                secret_hash=hash_of(key).hex(),
                name=new.name,
                scopes=json.dumps(sorted(set(new.scopes))),
                created_at=now,
                created_by=by,
                expires_at=None if lifetime is None else now + timedelta(seconds=lifetime),
                tenant=new.tenant or DEFAULT_TENANT,
                subject=new.subject,
            )
            tx.api_keys.insert(record)
            _note(tx, actor, AuditAction.KEY_CREATE, record, scopes=sorted(set(new.scopes)))
            return record

        view = api_key_view(await self._store.transact(work))
        return CreatedApiKey(**view.model_dump(), key=key)

    async def list(
        self, tenant: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> ApiKeyPage:
        """Return a page of the keys of a tenant, or of all keys, the newest first.

        Ended ones are listed for 90 days.

        Raises:
            InvalidCursorError: The cursor is not one of this list.
            UnavailableError: The store does not answer.
        """
        this = _LIST if tenant is None else {**_LIST, "tenant": tenant}
        before = None if cursor is None else _position(cursor, this)
        found = await self._store.read(
            lambda tx: tx.api_keys.page(tenant=tenant, before=before, limit=limit + 1)
        )
        page = found[:limit]
        following = None
        if len(found) > limit:
            last = page[-1]
            following = encode_cursor([to_microseconds(last.created_at), last.key_id], of=this)
        return ApiKeyPage(items=list(map(api_key_view, page)), next_cursor=following)

    async def revoke(
        self, key_id: str, *, tenant: str | None = None, actor: Actor | None = None
    ) -> ApiKeyView:
        """Revoke a key: no request that arrives after this returns is accepted with it. Idempotent.

        Other control planes on the store learn of it by a notice, within milliseconds; while notices do not
        arrive, within `key_callers.KNOWN_SECONDS`.

        Args:
            key_id: The key.
            tenant: The only tenant whose keys the caller may revoke. None: those of any.
            actor: Who is named in the audit log. None: nobody.

        Raises:
            ApiKeyNotFoundError: There is no such key, for this caller.
            UnavailableError: The store does not answer.
        """

        def work(tx: StoreTransaction) -> ApiKeyRecord | None:
            known = tx.api_keys.find(key_id)
            if known is None or tenant not in (None, known.tenant):
                return None
            tx.api_keys.revoke(key_id, at=tx.api_keys.now())
            tx.notify(Notice(keys=True))
            if known.revoked_at is None:
                _note(tx, actor, AuditAction.KEY_REVOKE, known)
            return tx.api_keys.find(key_id)

        record = await self._store.transact(work)
        if record is None:
            raise ApiKeyNotFoundError(f"there is no key {key_id!r}; list the keys with `llamactl keys list`")
        self._callers.forget()
        return api_key_view(record)

    async def issue_token(self, new: NewToken, *, caller: Caller, actor: Actor | None = None) -> CreatedToken:
        """Return a token for one resource of whom the caller acts for. It ends with the key of the caller.

        Args:
            new: What it is to be.
            caller: Who asks for it.
            actor: Who is named in the audit log. None: nobody.

        Raises:
            PermissionDeniedError: The caller has no API key of the store, or not these scopes.
            UnavailableError: The store does not answer.
        """
        if caller.key_id is None:
            raise PermissionDeniedError(
                "tokens are issued to callers with an API key of the state store, which authentication must"
                " require; create one with `llamactl keys create`"
            )
        key_id = caller.key_id
        missing = [] if caller.may_do_all else sorted(set(new.scopes) - caller.scopes)
        if missing:
            raise PermissionDeniedError(
                f"a token cannot have the scope {missing[0]}, which the key that asks for it does not have",
                scope=missing[0],
            )
        record, now = await self._store.read(lambda tx: (tx.api_keys.find(key_id), tx.api_keys.now()))
        if record is None:
            raise ApiKeyNotFoundError(f"there is no key {key_id!r} any more")
        ends = now + timedelta(seconds=new.expires_in_seconds)
        if record.expires_at is not None:
            ends = min(ends, record.expires_at)
        if actor is not None:
            entry = audit_record(
                actor,
                AuditAction.TOKEN_CREATE,
                new.id,
                at=now,
                tenant=caller.owner.tenant,
                of=new.kind.value,
                scopes=sorted(set(new.scopes)),
                seconds=new.expires_in_seconds,
            )
            await self._store.transact(lambda tx: tx.audit.append([entry]))
        resource, scopes = Resource(new.kind, new.id), frozenset(new.scopes)
        token = ResourceToken(key_id, resource, scopes, ends, owner=caller.owner)
        return CreatedToken(token=token.signed(record.secret_hash), expires_at=ends)


def _note(
    tx: StoreTransaction, actor: Actor | None, action: AuditAction, key: ApiKeyRecord, **details: Any
) -> None:
    """Note in the audit log what was done with a key."""
    if actor is not None:
        facts: dict[str, Any] = {"name": key.name or None, "bound_to": key.subject, **details}
        entry = audit_record(actor, action, key.key_id, at=tx.api_keys.now(), tenant=key.tenant, **facts)
        tx.audit.append([entry])


def _of_tenant(new: NewApiKey, tenant: str) -> NewApiKey:
    """Return what a new key of a tenant is to be.

    Raises:
        PermissionDeniedError: As `ApiKeys.create`.
    """
    if new.tenant not in (None, tenant):
        raise PermissionDeniedError("a key of a tenant creates keys of that tenant only; leave out `tenant`")
    if refused := OPERATOR_SCOPES.intersection(new.scopes):
        raise PermissionDeniedError(f"a key of a tenant cannot have the scope {min(refused)}")
    return new.model_copy(update={"tenant": tenant})


def _position(cursor: str, this: Mapping[str, object]) -> tuple[datetime, str]:
    at, key_id = decode_cursor(cursor, of=this, kinds=(int, str))
    return time_in_cursor(at), str(key_id)
