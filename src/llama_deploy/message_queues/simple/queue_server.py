"""The server of the simple queue: the broker over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Self

import pydantic_core
from fastapi import Query, Request
from pydantic import BaseModel, Field, TypeAdapter
from starlette.responses import Response
from starlette.types import ASGIApp, Receive

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.concurrency.closing import AsyncCloseable
from llama_deploy.concurrency.probe import Probe
from llama_deploy.errors import ClosedError, MessageDecodeError, UnavailableError, WrongServerError
from llama_deploy.health import Checks, is_healthy, summary
from llama_deploy.message_queues.base import DEFAULT_GROUP
from llama_deploy.message_queues.settlement import MAX_SECONDS
from llama_deploy.message_queues.simple.broker import SimpleBroker, TopicDepth
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.host import BrokerHost
from llama_deploy.message_queues.simple.http_queue import MAX_RECEIVED
from llama_deploy.message_queues.simple.limits import MAX_NAME_LENGTH
from llama_deploy.message_queues.simple.local import LocalMessageQueue
from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.message_queues.simple.topic import Handout
from llama_deploy.messages import QueueMessage
from llama_deploy.web.application import create_app
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import QUEUE_ACCESS
from llama_deploy.web.edge.authentication import Authenticator
from llama_deploy.web.edge.bearer_tokens import shared_key
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.health_routes import add_health_routes
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.responses import json_response
from llama_deploy.web.shortcuts import Call, Routes

logger = logging.getLogger(__name__)

MAX_WAIT_SECONDS: Final = 60.0
"""A longer `wait` is cut to this."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]


class TopicOptions(BaseModel, use_attribute_docstrings=True):
    """What `POST /topics/{topic}` takes."""

    group: Name = DEFAULT_GROUP
    """The group to create."""
    expires_after: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)
    """Seconds without a reader after which the topic is deleted. None: unchanged; never, for a new topic."""


class TopicInfo(BaseModel):
    """What `POST /topics/{topic}` answers."""

    topic: str
    group: str
    visibility_timeout: float


class Accepted(BaseModel, use_attribute_docstrings=True):
    """What `POST /messages/{topic}` answers."""

    accepted: int
    """How many messages were accepted, from the first on. The topic was full for the others."""


class Received(BaseModel):
    """One delivery."""

    delivery_id: str
    attempt: int
    message: QueueMessage


class ReceivedBatch(BaseModel):
    """What `GET /messages/{topic}` answers. Empty if no message arrived in time."""

    deliveries: list[Received]


class ReceiveQuery(BaseModel, use_attribute_docstrings=True):
    """The query of `GET /messages/{topic}`."""

    group: str = DEFAULT_GROUP
    """The group that receives."""
    max_messages: int = Field(default=1, alias="max", ge=1, le=MAX_RECEIVED)
    """The maximum number of messages."""
    wait: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds to wait for the first message, at most 60."""
    visibility: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    """Seconds after which an unsettled message is requeued. None: the server's setting."""
    subscription: str = Field(default="", max_length=MAX_NAME_LENGTH)
    """Identifies the receiver, so that all its messages can be requeued at once."""


class QueueHealth(BaseModel, use_attribute_docstrings=True):
    """What `GET /health` answers."""

    status: str
    durable: bool
    """Whether accepted messages survive a restart of the server."""


class QueueInfo(QueueHealth):
    """What `GET /` answers."""

    service_name: str
    type: str
    topics: int


class SimpleMessageQueueServer(AsyncCloseable):
    """Serves a simple queue over HTTP: `async with SimpleMessageQueueServer(config) as server`.

    Args:
        config: The settings. With port 0 the system chooses one; `server.config` has it after the start.
        authenticator: Identifies callers. None: they need the `api_key` of the settings, if it has one.
    """

    def __init__(
        self,
        config: SimpleMessageQueueConfig | None = None,
        *,
        authenticator: Authenticator | None = None,
    ) -> None:
        self.config = config or SimpleMessageQueueConfig()
        self._authenticator = authenticator
        self._running: _Running | None = None

    async def start(self) -> None:
        """Restore the journal and listen. Returns when requests are served; `config` then has the port.

        Raises:
            ConfigError: The address or the journal cannot be used.
        """
        if self._running is not None:
            return
        logger.info("Launching message queue server at %s/", self.config.base_url, extra={"action": "launch"})
        host = await BrokerHost.start(self.config)
        try:
            app = build_app(host.broker, self.config, authenticator=self._authenticator)
            http = await HttpServer.start(
                app,
                host=self.config.host,
                port=self.config.port,
                allow_remote=self.config.allow_remote or self._is_closed,
                max_connections=self.config.max_connections,
                tls=self.config.tls,
            )
        except BaseException:
            await host.close()
            raise
        self._running = _Running(host, http)
        self.config = self.config.model_copy(update={"port": http.port})

    async def close(self) -> None:
        """End long polls, stop listening, close the journal. Idempotent; deletes nothing."""
        running, self._running = self._running, None
        if running is not None:
            # Long polls are answered first, because the HTTP server would wait for them.
            running.host.broker.close()
            await running.http.close()
            await running.host.close()

    @ends_quietly
    async def launch_server(self) -> None:
        """Start, and serve until cancelled.

        Raises:
            ConfigError: The address or the journal cannot be used.
        """
        async with self:
            await self._live().http.wait_closed()

    def local_queue(self) -> LocalMessageQueue:
        """Return a queue for code in this process, which does not use HTTP. Close it before the server.

        Raises:
            ClosedError: The server is not started, or closed.
        """
        return LocalMessageQueue(self._live().host.broker, self.config)

    @property
    def _is_closed(self) -> bool:
        """Whether callers need a key."""
        return self._authenticator is not None or self.config.api_key is not None

    def _live(self) -> _Running:
        if self._running is None:
            raise ClosedError("the message queue server is not running; start it first")
        return self._running

    async def __aenter__(self) -> Self:
        await self.start()
        return self


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists between `start` and `close`."""

    host: BrokerHost
    http: HttpServer


def build_app(
    broker: SimpleBroker, config: SimpleMessageQueueConfig, *, authenticator: Authenticator | None = None
) -> ASGIApp:
    """Return the HTTP application of a broker, behind the layers of the edge."""
    app = create_app(
        title="llama_deploy simple message queue",
        unknown_path=WrongServerError(
            "this is the message queue, not the control plane; use the URL of the control plane, whose port"
            " is 8000 unless you set another"
        ),
    )
    # One schema per model: bodies that are parsed by hand refer to the schemas of responses.
    app.separate_input_output_schemas = False
    routes = QueueRoutes(broker)
    router = new_router(QUEUE_ACCESS)
    router.get("/", response_model=QueueInfo)(routes.home)
    router.get("/health", response_model=QueueHealth)(routes.health)
    add_health_routes(router, routes.ready)
    router.get("/topics", response_model=dict[str, TopicDepth])(routes.topics)
    router.post("/topics/{topic:path}", response_model=TopicInfo)(routes.create_topic)
    publish = router.post("/messages/{topic:path}", response_model=Accepted, openapi_extra=_PUBLISH_BODY)
    publish(routes.publish)
    router.get("/messages/{topic:path}", response_model=ReceivedBatch)(routes.receive)
    router.post("/deliveries/settle", status_code=HTTPStatus.NO_CONTENT)(routes.settle)
    router.delete("/subscriptions/{subscription}", status_code=HTTPStatus.NO_CONTENT)(routes.unsubscribe)
    app.include_router(router)
    settings = EdgeSettings(
        env_prefix="SIMPLE_MESSAGE_QUEUE_",
        no_head=("/messages/",),
        hosts=[config.host, *config.trusted_hosts],
        max_body_bytes=config.max_body_bytes,
        max_total_body_bytes=config.max_total_body_bytes,
        authenticator=authenticator or shared_key(config.api_key),
        access=QUEUE_ACCESS,
    )
    return build_edge(app, settings, shortcuts=queue_shortcuts(routes))


def queue_shortcuts(routes: QueueRoutes) -> Routes:
    """Return the shortcuts for the routes that every message uses."""

    async def publish(call: Call) -> bytes:
        return await routes.take(call.rest, call.body)

    async def receive(call: Call) -> bytes | None:
        return await routes.hand_out(call.rest, call.read_query(ReceiveQuery), call.receive)

    async def settle(call: Call) -> None:
        await routes.settle(call.read_body(_SETTLEMENTS))

    return {
        ("POST", "/messages/"): publish,
        ("GET", "/messages/"): receive,
        ("POST", "/deliveries/settle"): settle,
    }


class QueueRoutes:
    """The handlers. Those for messages encode and decode bodies themselves, which is twice as fast."""

    def __init__(self, broker: SimpleBroker) -> None:
        self._broker = broker
        self._probe = Probe("queue", broker.check)

    async def home(self) -> QueueInfo:
        """Return the type of the server and the number of topics."""
        return QueueInfo(
            service_name="message_queue",
            type="simple",
            status="ok",
            durable=self._broker.durable,
            topics=len(self._broker.depths()),
        )

    async def ready(self) -> Checks:
        """Return whether messages are taken."""
        return {"queue": await self._probe.outcome()}

    async def health(self) -> QueueHealth:
        """Return `ok` if messages are taken."""
        checks = await self.ready()
        if not is_healthy(checks):
            raise UnavailableError(f"the message queue takes no messages: {summary(checks)}")
        return QueueHealth(status="ok", durable=self._broker.durable)

    async def topics(self) -> Mapping[str, TopicDepth]:
        """Return the depth of each topic."""
        return self._broker.depths()

    async def create_topic(self, topic: str, options: TopicOptions | None = None) -> TopicInfo:
        """Create a topic and a group of it, if they do not exist."""
        options = options or TopicOptions()
        self._broker.create(topic, options.group, expires_after=options.expires_after)
        return TopicInfo(
            topic=topic, group=options.group, visibility_timeout=self._broker.limits.visibility_timeout
        )

    async def publish(self, topic: str, request: Request) -> Response:
        """Publish a message or a list of messages. The topic is created if it does not exist.

        Answers when they are stored. Of a list, as many messages are accepted as the topic has room for; 429
        means none. If one of them is too large for any topic, the answer is 413, and none is accepted. A
        message with the id of one in the topic is a duplicate, and is accepted without effect.
        """
        return json_response(await self.take(topic, await request.body()))

    async def take(self, topic: str, body: bytes) -> bytes:
        """Do what `publish` says."""
        messages = _decode_messages(body)
        accepted = await self._broker.publish(
            topic, [(message.id_, message.encode()) for message in messages]
        )
        return b'{"accepted":%d}' % accepted

    async def receive(
        self, topic: str, request: Request, query: Annotated[ReceiveQuery, Query()]
    ) -> Response:
        """Receive the next messages, waiting up to `wait` seconds (at most 60) for the first.

        Settle each by its `delivery_id` within `visibility` seconds, otherwise it is requeued. If the
        connection breaks during the wait, all deliveries to `subscription` are requeued at once.
        """
        answer = await self.hand_out(topic, query, request.receive)
        return Response(status_code=HTTPStatus.NO_CONTENT) if answer is None else json_response(answer)

    async def hand_out(self, topic: str, query: ReceiveQuery, channel: Receive) -> bytes | None:
        """Do what `receive` says. Return None if the client has disconnected."""
        receiving = self._broker.receive(
            topic,
            group=query.group,
            max_messages=query.max_messages,
            wait=min(query.wait, MAX_WAIT_SECONDS),
            visibility=query.visibility,
            subscription=query.subscription,
        )
        if query.wait <= 0 or self._broker.has_ready(topic, query.group):
            return _encode_handouts(await receiving)
        handouts = await self._unless_disconnected(receiving, channel)
        if handouts is None:
            if query.subscription:
                self._broker.release(query.subscription)
            return None
        return _encode_handouts(handouts)

    async def settle(self, settlements: list[Settlement]) -> None:
        """Settle deliveries. Those that are settled already or have timed out are ignored."""
        self._broker.settle(settlements)

    async def unsubscribe(self, subscription: str) -> Response:
        """End a subscription. Its deliveries are requeued at once."""
        self._broker.release(subscription, closed=True)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _unless_disconnected(
        self, call: Coroutine[None, None, list[Handout]], channel: Receive
    ) -> list[Handout] | None:
        """Return the result of `call`, or receive nothing and return None if the client disconnects."""
        try:
            async with asyncio.timeout(None) as waiting:
                watching = asyncio.create_task(_end_with_client(waiting, channel))
                handouts = await call
        except TimeoutError:
            return None
        finally:
            gone = watching.done()
            watching.cancel()
        if gone:
            self._broker.give_back(handouts)
            return None
        return handouts


def _decode_messages(body: bytes) -> list[QueueMessage]:
    try:
        wires = pydantic_core.from_json(body)
    except ValueError as exc:
        raise MessageDecodeError(f"not JSON: {exc}; the body begins with {body[:40]!r}") from exc
    if not isinstance(wires, list):
        wires = [wires]
    if not wires:
        raise MessageDecodeError("the list of messages is empty")
    return [QueueMessage.from_wire(wire) for wire in wires]


def _encode_handouts(handouts: Sequence[Handout]) -> bytes:
    """Embed the stored messages in a response without decoding them."""
    return b'{"deliveries":[%s]}' % b",".join(
        b'{"delivery_id":"%s","attempt":%d,"message":%s}'
        % (handout.delivery_id.encode(), handout.attempt, handout.body)
        for handout in handouts
    )


async def _end_with_client(waiting: asyncio.Timeout, channel: Receive) -> None:
    """End the wait as soon as the client disconnects."""
    while (await channel())["type"] != "http.disconnect":
        pass
    waiting.reschedule(0.0)


_SETTLEMENTS: Final = TypeAdapter(list[Settlement])
_MESSAGE: Final = {"$ref": "#/components/schemas/QueueMessage"}
_MESSAGES: Final = {"anyOf": [_MESSAGE, {"type": "array", "items": _MESSAGE, "minItems": 1}]}
_PUBLISH_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _MESSAGES}}}
}
