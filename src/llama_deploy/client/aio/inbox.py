"""The open questions of all services, for those who answer them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import BaseModel

from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.client.paths import question_path
from llama_deploy.client.payload_encoding import encode_answer
from llama_deploy.types.questions import Callback, Question, QuestionPage


class Inbox:
    """Lists, answers, refuses and assigns questions. You get it from `Client.inbox`.

    Example:
        ```python
        async for question in client.inbox.list(assignee="ann"):
            print(question.prompt)
            await client.inbox.answer(question.question_id, {"approved": True})
        ```
    """

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def list(
        self,
        *,
        service: str | None = None,
        assignee: str | None = None,
        tag: str | None = None,
    ) -> AsyncGenerator[Question]:
        """Yield the open questions, the oldest first. Further ones are fetched as you go on.

        Args:
            service: Only those of this service.
            assignee: Only those assigned to this name.
            tag: Only those with this tag.

        Raises:
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        cursor: str | None = None
        while True:
            page = await self.page(service=service, assignee=assignee, tag=tag, cursor=cursor)
            while page.items:
                yield page.items.pop(0)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def page(
        self,
        *,
        service: str | None = None,
        assignee: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> QuestionPage:
        """Return one page of the open questions. See `list`.

        Args:
            service: As `list`.
            assignee: As `list`.
            tag: As `list`.
            cursor: `next_cursor` of the page before. None: the first page.
            limit: The most questions to return, up to 200. There may be fewer if they are large.

        Raises:
            InvalidCursorError: The cursor belongs to a list with other filters.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        filters = {"service": service, "assignee": assignee, "tag": tag, "cursor": cursor}
        given: dict[str, str | int] = {name: each for name, each in filters.items() if each is not None}
        return await self._api.get("/inbox", QuestionPage.model_validate, **given, limit=limit)

    async def get(self, question_id: str) -> Question:
        """Return a question, open or not.

        Raises:
            QuestionNotFoundError: It does not exist.
        """
        return await self._api.get(question_path(question_id), Question.model_validate)

    async def answer(
        self,
        question_id: str,
        event: BaseModel | Mapping[str, Any],
        *,
        event_type: str | None = None,
        idempotency_key: str | None = None,
    ) -> Question:
        """Answer a question. The answer is stored when this returns; it counts once.

        The call retries while the control plane does not respond. The answer still counts once, and the call
        succeeds if it was stored the first time.

        Args:
            question_id: The question.
            event: The answer: an event, or its fields.
            event_type: The class of the answer, if the question takes several and `event` has only fields.
                None: the expected one.
            idempotency_key: Identifies the answer: sent again with the same key, it succeeds. None: a new key
                for this call.

        Raises:
            QuestionNotFoundError: The question does not exist.
            QuestionClosedError: It has been answered or refused, it has expired, or its task has ended.
            AnswerNotAcceptedError: The answer does not fit the question; the text says which field.
            SerializationError: The answer cannot be converted to JSON.
            UnavailableError: The control plane did not respond for the client's `timeout`. The answer may or
                may not be stored.
        """
        body = encode_answer(event, event_type=event_type, idempotency_key=idempotency_key)
        return await self._post(question_id, "answer", body.model_dump(exclude_none=True))

    async def refuse(self, question_id: str, reason: str) -> Question:
        """Refuse to answer: the task fails with `QuestionRefusedError` and the reason. Idempotent.

        Raises:
            QuestionNotFoundError: The question does not exist.
            QuestionClosedError: It is not open.
        """
        return await self._post(question_id, "refuse", {"reason": reason})

    async def assign(self, question_id: str, assignee: str | None) -> Question:
        """Say who is to answer a question. None: anybody. Idempotent.

        Raises:
            QuestionNotFoundError: The question does not exist.
            QuestionClosedError: It is not open.
        """
        return await self._post(question_id, "assign", {"assignee": assignee})

    async def callback(self, question_id: str) -> Callback:
        """Return a URL that answers this question once, for those who must have no other right.

        `POST` the fields of the answer to it as a JSON object. The URL is a secret.

        Raises:
            QuestionNotFoundError: The question does not exist.
            QuestionClosedError: It is not open.
        """
        path = question_path(question_id) + "/callback"
        return await self._api.post_again(path, Callback.model_validate)

    async def _post(self, question_id: str, action: str, body: dict[str, Any]) -> Question:
        path = f"{question_path(question_id)}/{action}"
        return await self._api.post_again(path, Question.model_validate, json=body)
