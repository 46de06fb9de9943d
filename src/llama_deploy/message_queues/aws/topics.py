"""Which queues of Amazon SQS hold a topic: their names, creation and expiry."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from llama_deploy.errors import ConfigError, LlamaDeployError, TopicNotFoundError
from llama_deploy.message_queues.aws.connection import SqsConnection
from llama_deploy.message_queues.base import DEFAULT_GROUP
from llama_deploy.message_queues.remembering import remember

logger = logging.getLogger(__name__)

_MAX_CHARACTERS: Final = 80
_DIGEST_CHARACTERS: Final = 16
_ENDING_CHARACTERS: Final = 3 + _DIGEST_CHARACTERS
"""Of a name that is cut: three hyphens and a digest."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*")
"""Topics whose names become those of queues without a digest."""
_GROUPS: Final = "group---"
_PROPAGATION_SECONDS: Final = 1.0
"""After which every server of the service knows of a new queue ("CreateQueue")."""
_PAGE: Final = 1000
_MIN_RETENTION: Final = 60
_EXPIRES_AT: Final = "llama_deploy:expires_at"
"""The tag that says when a queue may be dropped, in seconds since 1970."""


class SqsTopics:
    """The queues of topics and groups, created when they are first used.

    The groups of other processes are cached for `group_seconds`.
    """

    def __init__(self, connection: SqsConnection) -> None:
        self._connection = connection
        self._prefix = connection.config.queue_prefix
        self._urls: dict[str, str] = {}
        self._groups: dict[str, list[str]] = {}
        self._groups_until = -math.inf
        self._loading = asyncio.Lock()

    async def url(self, topic: str, group: str = DEFAULT_GROUP) -> str:
        """Return the URL of the queue of a group, which is created if it does not exist."""
        name = queue_name(self._prefix, topic, group)
        known = self._urls.get(name)
        if known is None:
            known = await self._find(name) or await self._create(name)
            remember(self._urls, name, known)
        return known

    async def ping(self) -> None:
        """Ask the service about a queue, which need not exist.

        Raises:
            UnavailableError: It does not answer.
            ConfigError: It refuses the request.
        """
        await self._find(f"{self._prefix}health")

    def forget(self, topic: str, group: str = DEFAULT_GROUP) -> None:
        """Look again for the queue of a group before its next use."""
        self._urls.pop(queue_name(self._prefix, topic, group), None)

    async def groups(self, topic: str) -> list[str]:
        """Return the URLs of the queues of a topic's other groups."""
        await self.load_groups()
        return self._groups.get(_digest(topic), [])

    def forget_groups(self) -> None:
        """Look again for groups before the next publication."""
        self._groups_until = -math.inf

    async def load_groups(self) -> None:
        """Ask for all groups, unless the cached ones are recent."""
        loop = asyncio.get_running_loop()
        async with self._loading:
            if loop.time() < self._groups_until:
                return
            until = loop.time() + self._connection.config.group_seconds
            groups = defaultdict[str, list[str]](list)
            head = self._prefix + _GROUPS
            async for url in self._list(head):
                groups[_name(url)[len(head) :][:_DIGEST_CHARACTERS]].append(url)
            self._groups, self._groups_until = groups, until

    async def join(self, topic: str, group: str) -> None:
        """Create topic and group where they do not exist; returns when all publishers know of the group."""
        name = queue_name(self._prefix, topic, group)
        await self.url(topic)
        is_new = group != DEFAULT_GROUP and name not in self._urls and await self._find(name) is None
        await self.url(topic, group)
        if is_new:
            self.forget_groups()
            await asyncio.sleep(self._connection.config.group_seconds + _PROPAGATION_SECONDS)

    async def keep(self, topic: str, group: str, seconds: float) -> None:
        """Let a queue, and what is in it, expire when it is not kept again within `seconds`."""
        url = await self.url(topic, group)
        retention = min(max(math.ceil(seconds), _MIN_RETENTION), self._connection.config.retention_seconds)
        await self._connection.call(
            "set_queue_attributes", QueueUrl=url, Attributes={"MessageRetentionPeriod": str(retention)}
        )
        expires_at = str(math.ceil(time.time() + seconds))
        await self._connection.call("tag_queue", QueueUrl=url, Tags={_EXPIRES_AT: expires_at})

    async def sweep(self, topic: str) -> None:
        """Drop the expired queues of topics that differ from this one in their last part.

        What is listed with them may be another service's; if it has expired, it is dropped as well.
        """
        own = queue_name(self._prefix, topic, DEFAULT_GROUP)
        try:
            async for url in self._list(common_prefix(self._prefix, topic)):
                if _name(url) == own:
                    continue
                answer = await self._connection.call("list_queue_tags", QueueUrl=url)
                expires_at = answer.get("Tags", {}).get(_EXPIRES_AT)
                if expires_at is not None and float(expires_at) < time.time():
                    await self._connection.call("delete_queue", QueueUrl=url)
                    logger.info("queue %s has expired", _name(url), extra={"action": "topic_expired"})
        except TopicNotFoundError:
            logger.debug("another process drops the expired queues next to %s", own)
        except LlamaDeployError as exc:
            logger.warning("expired queues next to %s are not dropped: %s", own, exc)

    async def _list(self, head: str) -> AsyncIterator[str]:
        """Yield the URLs of the queues whose names begin so."""
        ask = partial(self._connection.call, "list_queues", QueueNamePrefix=head, MaxResults=_PAGE)
        answer = await ask()
        while True:
            for url in answer.get("QueueUrls", ()):
                yield url
            if not (token := answer.get("NextToken")):
                return
            answer = await ask(NextToken=token)

    async def _find(self, name: str) -> str | None:
        try:
            return str((await self._connection.call("get_queue_url", QueueName=name))["QueueUrl"])
        except TopicNotFoundError:
            return None

    async def _create(self, name: str) -> str:
        attributes = {"MessageRetentionPeriod": str(self._connection.config.retention_seconds)}
        try:
            answer = await self._connection.call("create_queue", QueueName=name, Attributes=attributes)
        except ConfigError:
            # Another process may have created it a moment ago, with a retention of its own.
            if (url := await self._find(name)) is None:
                raise
            return url
        logger.info("queue %s is created", name, extra={"action": "topic_created"})
        return str(answer["QueueUrl"])


def queue_name(prefix: str, topic: str, group: str) -> str:
    """Return the name of a group's queue: at most 80 letters, digits, hyphens and underscores.

    A dot becomes two hyphens. What cannot be written so, or is too long, is cut and gets a digest, after
    three hyphens, so that no two topics have the same queue.
    """
    readable = _readable(topic)
    room = _MAX_CHARACTERS - len(prefix)
    if group != DEFAULT_GROUP:
        whole = f"{_GROUPS}{_digest(topic)}---{_digest(json.dumps([topic, group]))}---{readable}"
        return prefix + whole[:room]
    if _PLAIN.fullmatch(topic) and len(readable) <= room:
        return prefix + readable
    return f"{prefix}{readable[: room - _ENDING_CHARACTERS]}---{_digest(topic)}"


def common_prefix(prefix: str, topic: str) -> str:
    """Return how the names of all queues begin whose topics differ from this one in their last part only.

    It comes from the topics, for a name may end in a digest. The names of others may begin so too: of two
    long or odd services that look alike once they are cut and written with the characters that are allowed.
    """
    parent = topic.rpartition(".")[0]
    return prefix + _readable(f"{parent}.")[: _MAX_CHARACTERS - len(prefix) - _ENDING_CHARACTERS]


def _readable(topic: str) -> str:
    return re.sub("-{3,}", "--", re.sub(r"[^A-Za-z0-9_-]", "_", topic.replace(".", "--")))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _name(url: str) -> str:
    """Return the name of a queue, the last part of its URL."""
    return url.rpartition("/")[2]
