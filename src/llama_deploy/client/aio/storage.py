"""The control plane's state store: its size, and purges."""

from __future__ import annotations

from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.types.retention import PurgeAnswer, PurgeRequest, StorageView


class Storage:
    """The state store of the control plane."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def size(self, *, exact: bool = False) -> StorageView:
        """Return how large the store is.

        Args:
            exact: Measure every table and count its rows, which reads the whole store.

        Raises:
            UnavailableError: The control plane did not respond.
        """
        params = {"exact": "true"} if exact else {}
        return await self._api.get("/storage", StorageView.model_validate, **params)

    async def purge(self, request: PurgeRequest) -> PurgeAnswer:
        """Remove ended tasks, or count those of a dry run. Repeat the request while the answer has `more`.

        Raises:
            InvalidRequestError: Neither the request nor the settings say how old tasks must be.
            UnavailableError: The control plane did not respond.
        """
        body = request.model_dump(mode="json")
        return await self._api.post_again("/storage/purge", PurgeAnswer.model_validate, json=body)
