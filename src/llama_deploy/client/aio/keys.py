"""API keys of a control plane, for its administrators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.client.paths import key_path
from llama_deploy.types.api_keys import ApiKeyPage, ApiKeyView, CreatedApiKey
from llama_deploy.types.callers import AccessScope, ResourceKind
from llama_deploy.types.tokens import DEFAULT_TOKEN_SECONDS, CreatedToken


class KeyCollection:
    """Creates, lists and revokes API keys, for callers with the scope `admin`. See `Client.core.keys`.

    Callers with any API key get tokens from it.
    """

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def create(
        self,
        scopes: Sequence[AccessScope | str],
        *,
        expires_in: float | None,
        name: str = "",
        tenant: str | None = None,
        subject: str | None = None,
    ) -> CreatedApiKey:
        """Create a key and return it with its secret, which cannot be shown again.

        The request is sent once: if the answer is lost, the key may exist, and `list` shows it.

        Args:
            scopes: What its callers may do, such as `tasks:read`.
            expires_in: After how many seconds it expires. None: never.
            name: What it is for.
            tenant: With whose sessions, tasks and questions its callers work. None: those of the tenant of
                this client's key.
            subject: The user of the tenant whose they are. None: all of the tenant.

        Raises:
            InvalidRequestError: A scope is unknown, or not for keys of a tenant or a subject; or a value is
                out of range.
            PermissionDeniedError: This client's key is of another tenant.
            ConflictError: There are too many keys.
            UnavailableError: The control plane did not respond.
        """
        body = {
            "scopes": [str(scope) for scope in scopes],
            "expires_in_seconds": expires_in,
            "name": name,
            **({} if tenant is None else {"tenant": tenant}),
            **({} if subject is None else {"subject": subject}),
        }
        return await self._api.post("/keys", CreatedApiKey.model_validate, json=body)

    async def list(self) -> AsyncGenerator[ApiKeyView]:
        """Yield the keys without their secrets, the newest first. Ended ones are listed for 90 days.

        Raises:
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        cursor: str | None = None
        while True:
            params = {} if cursor is None else {"cursor": cursor}
            page = await self._api.get("/keys", ApiKeyPage.model_validate, **params)
            for key in page.items:
                yield key
            cursor = page.next_cursor
            if cursor is None:
                return

    async def issue_token(
        self,
        kind: ResourceKind | str,
        resource_id: str,
        *,
        scopes: Sequence[AccessScope | str],
        expires_in: float = DEFAULT_TOKEN_SECONDS,
    ) -> CreatedToken:
        """Return a token for one task, session, stream or question, such as for a browser.

        Its callers send it like a key, or as `?token=` in the URL. It ends with the key of this client, which
        needs these scopes, but not `admin`.

        Args:
            kind: `task`, `session`, `stream` (the events of a task) or `question`.
            resource_id: Its id; of a stream, that of the task.
            scopes: What its callers may do with it: `tasks:read`, `tasks:write` or `inbox:answer`.
            expires_in: After how many seconds it expires, at most a day.

        Raises:
            PermissionDeniedError: The key does not have these scopes.
            InvalidRequestError: A value is out of range.
            UnavailableError: The control plane did not respond.
        """
        body = {
            "kind": str(kind),
            "id": resource_id,
            "scopes": [str(scope) for scope in scopes],
            "expires_in_seconds": expires_in,
        }
        return await self._api.post_again("/tokens", CreatedToken.model_validate, json=body)

    async def revoke(self, key_id: str) -> ApiKeyView:
        """Revoke a key at once. Idempotent.

        Raises:
            ApiKeyNotFoundError: There is no such key.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        return await self._api.post_again(f"{key_path(key_id)}/revoke", ApiKeyView.model_validate)
