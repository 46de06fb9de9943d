"""What only the queue on Amazon SQS does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    PayloadTooLargeError,
    UnavailableError,
)
from llama_deploy.message_queues.aws import AWSMessageQueueConfig
from llama_deploy.message_queues.aws.topics import queue_name
from llama_deploy.message_queues.base import DEFAULT_GROUP
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.topics import Topics
from tests.integration.numbered import TOPIC, number_of, numbered, receive
from tests.integration.on_sqs import count_of, plain_client, settings
from tests.servers.scripted_sqs import Refusal, ScriptedSqs, accepted, refused
from tests.servers.sqs import SqsServer

SECRET = "hush/hush"  # noqa: S105 - of a test


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    with SqsServer(tmp_path_factory.mktemp("sqs")) as server:
        yield server


@pytest.fixture
async def server(running_server: SqsServer) -> SqsServer:
    async with plain_client(running_server.endpoint_url) as client:
        for url in (await client.list_queues()).get("QueueUrls", ()):
            await client.delete_queue(QueueUrl=url)
    return running_server


async def test_what_a_closed_subscription_held_comes_back_at_once(server: SqsServer) -> None:
    async with await settings(server.endpoint_url, visibility_timeout=3600).connect() as queue:
        for number in range(3):
            await queue.publish(numbered(number), TOPIC)
        async with await queue.subscribe(TOPIC) as held:
            assert len(await receive(held, 2)) == 2
        async with await queue.subscribe(TOPIC) as subscription:
            numbers = {number_of((await receive(subscription))[0]) for _ in range(3)}
        assert numbers == {0, 1, 2}


async def test_what_comes_when_nobody_waits_any_more_goes_to_another(server: SqsServer) -> None:
    config = settings(server.endpoint_url, visibility_timeout=3600, wait_seconds=20)
    async with (
        await config.connect() as queue,
        await queue.subscribe(TOPIC) as left,
        await queue.subscribe(TOPIC) as other,
    ):
        waiting = asyncio.create_task(left.receive(5))
        await _request_waits(server)
        waiting.cancel()
        await asyncio.wait([waiting])
        await queue.publish(numbered(1), TOPIC)
        (delivery,) = await receive(other)
        assert number_of(delivery) == 1


async def test_what_comes_as_its_receive_is_cancelled_goes_to_another(server: SqsServer) -> None:
    config = settings(server.endpoint_url, visibility_timeout=3600)
    async with (
        await config.connect() as queue,
        await queue.subscribe(TOPIC) as left,
        await queue.subscribe(TOPIC) as other,
    ):
        waiting = asyncio.create_task(left.receive(1))
        await _request_waits(server)
        (request,) = (task for task in asyncio.all_tasks() if task.get_name() == f"receive {TOPIC}")
        request.add_done_callback(lambda _: waiting.cancel())
        await queue.publish(numbered(1), TOPIC)
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        (delivery,) = await receive(other)
        assert (number_of(delivery), delivery.attempt) == (1, 2)


async def test_a_receive_that_follows_a_cancelled_one_takes_no_more_than_it_asks_for(
    server: SqsServer,
) -> None:
    config = settings(server.endpoint_url, visibility_timeout=3600)
    async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.receive(10), 0.2)
        waiting = asyncio.create_task(receive(subscription, 1))
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(queue.publish(numbered(number), TOPIC))
        numbers = [number_of(each) for each in await waiting]
        assert len(numbers) == 1
        async with await queue.subscribe(TOPIC) as other:
            while len(numbers) < 5:
                numbers += [number_of(each) for each in await receive(other, 5)]
        assert sorted(numbers) == [0, 1, 2, 3, 4]


async def test_a_receive_brings_more_than_one_request_can(server: SqsServer) -> None:
    config = settings(server.endpoint_url, visibility_timeout=3600)
    async with await config.connect() as queue:
        async with asyncio.TaskGroup() as group:
            for number in range(34):
                group.create_task(queue.publish(numbered(number), TOPIC))
        async with await queue.subscribe(TOPIC) as subscription:
            numbers = [number_of(each) for each in await receive(subscription, 25)]
            assert len(numbers) == 25
            async with await queue.subscribe(TOPIC) as other:
                rest = await receive(other, 10)
        assert sorted(numbers + [number_of(each) for each in rest]) == list(range(34))
        assert {each.attempt for each in rest} == {1}


async def test_a_receive_ends_with_its_subscription(server: SqsServer) -> None:
    async with await settings(server.endpoint_url, wait_seconds=20).connect() as queue:
        subscription = await queue.subscribe(TOPIC)
        waiting = asyncio.create_task(subscription.receive(1))
        await _request_waits(server)
        async with asyncio.timeout(30):
            await subscription.close()
            with pytest.raises(ClosedError):
                await waiting
            await queue.publish(numbered(1), TOPIC)
            async with await queue.subscribe(TOPIC) as other:
                assert number_of((await receive(other))[0]) == 1


async def _request_waits(server: SqsServer) -> None:
    """Let a request for messages get to the server; whether it is there changes no outcome."""
    for _ in range(5):
        await count_of(server.endpoint_url, "ApproximateNumberOfMessages")


async def test_a_new_group_gets_all_that_is_published_after_its_subscription(server: SqsServer) -> None:
    config = settings(server.endpoint_url, group_seconds=0.5)
    async with await config.connect() as queue, await config.connect() as other:
        await other.publish(numbered(0), TOPIC)
        async with await queue.subscribe(TOPIC, group="second") as subscription:
            await other.publish(numbered(1), TOPIC)
            assert [number_of(each) for each in await receive(subscription, 5)] == [1]


async def test_groups_on_every_page_of_the_list_get_the_message() -> None:
    async with ScriptedSqs() as service:
        urls = [f"{service.endpoint_url}/1/{queue_name('', TOPIC, group)}" for group in ("one", "two")]

        def pages(asked: dict[str, Any]) -> dict[str, Any]:
            if asked.get("NextToken"):
                return {"QueueUrls": urls[1:]}
            return {"QueueUrls": urls[:1], "NextToken": "more"}

        service.answers["ListQueues"] = pages
        async with await settings(service.endpoint_url).connect() as queue:
            await queue.publish(numbered(1), TOPIC)
        sent_to = {asked["QueueUrl"] for name, asked in service.requests if name == "SendMessageBatch"}
        assert sent_to == {f"{service.endpoint_url}/1/namespace--service", *urls}


async def test_a_group_that_is_removed_holds_up_no_publication(server: SqsServer) -> None:
    async with await settings(server.endpoint_url).connect() as queue:
        await (await queue.subscribe(TOPIC, group="second")).close()
    # This one learns of the group when it connects, and relies on that for a minute.
    async with await settings(server.endpoint_url, group_seconds=60, timeout=1).connect() as publisher:
        await publisher.publish(numbered(0), TOPIC)
        async with plain_client(server.endpoint_url) as client:
            (url,) = (await client.list_queues(QueueNamePrefix="group---"))["QueueUrls"]
            await client.delete_queue(QueueUrl=url)
        async with asyncio.timeout(30):
            await publisher.publish(numbered(1), TOPIC)


async def test_any_name_is_a_topic(server: SqsServer) -> None:
    names = ["*", "a..b", "a.b", "a--b", ".", "with space", "ü", "a" * 200, "a" * 199 + "b"]
    async with await settings(server.endpoint_url).connect() as queue:
        for name in names:
            await queue.publish(QueueMessage(data={"name": name}), name)
        for name in names:
            async with await queue.subscribe(name) as subscription:
                (delivery,) = await receive(subscription, 5)
                assert delivery.message.data == {"name": name}
                await delivery.ack()


async def test_characters_that_sqs_refuses_arrive(server: SqsServer) -> None:
    message = QueueMessage(data={"text": "\ufffe\uffff\x00\x1f\x7f😀"})
    async with await settings(server.endpoint_url).connect() as queue:
        await queue.publish(message, TOPIC)
        async with plain_client(server.endpoint_url) as client:
            url = (await client.get_queue_url(QueueName="namespace--service"))["QueueUrl"]
            (raw,) = (await client.receive_message(QueueUrl=url, VisibilityTimeout=0))["Messages"]
        assert not {"\ufffe", "\uffff", "\x00", "\x1f"} & set(raw["Body"])
        async with await queue.subscribe(TOPIC) as subscription:
            assert (await receive(subscription))[0].message == message


async def test_the_queues_of_expired_topics_are_dropped(server: SqsServer) -> None:
    async with await settings(server.endpoint_url).connect() as queue:
        for name, seconds in (("three", None), ("one", 0.1), ("two", 3600.0)):
            async with await queue.subscribe(f"{TOPIC}.{name}", expires_after=seconds):
                pass

        async def names() -> set[str]:
            async with plain_client(server.endpoint_url) as client:
                urls = (await client.list_queues())["QueueUrls"]
            return {url.rpartition("--")[2] for url in urls}

        async def is_dropped() -> bool:
            async with await queue.subscribe(f"{TOPIC}.four", expires_after=3600.0):
                return "one" not in await names()

        await eventually(is_dropped)
        assert await names() == {"two", "three", "four"}


@pytest.mark.parametrize("service", ["customer_support_agent_service", "x" * 90, "der Agent für E-Mails"])
async def test_the_queues_of_dead_instances_are_dropped_whatever_the_service_is_called(
    server: SqsServer, service: str
) -> None:
    topics = Topics("llama_deploy")
    dead, alive, new = (topics.instance(service, str(uuid4())) for _ in range(3))
    work, prefix = topics.work(service), "staging-"
    async with await settings(server.endpoint_url, queue_prefix=prefix).connect() as queue:
        for topic, seconds in ((work, None), (dead, 0.1), (alive, 3600.0)):
            async with await queue.subscribe(topic, expires_after=seconds):
                pass

        async def names() -> set[str]:
            async with plain_client(server.endpoint_url) as client:
                urls = (await client.list_queues())["QueueUrls"]
            return {url.rpartition("/")[2] for url in urls}

        async def is_dropped() -> bool:
            async with await queue.subscribe(new, expires_after=3600.0):
                return queue_name(prefix, dead, DEFAULT_GROUP) not in await names()

        await eventually(is_dropped)
        assert await names() == {queue_name(prefix, topic, DEFAULT_GROUP) for topic in (work, alive, new)}


async def test_a_topic_that_is_read_does_not_expire(server: SqsServer) -> None:
    async with (
        await settings(server.endpoint_url).connect() as queue,
        await queue.subscribe(f"{TOPIC}.one", expires_after=3.0) as subscription,
    ):
        waiting = asyncio.create_task(subscription.receive(1))
        async with plain_client(server.endpoint_url) as client:
            url = (await client.get_queue_url(QueueName="namespace--service--one"))["QueueUrl"]

            async def expires_at() -> str:
                tags: dict[str, str] = (await client.list_queue_tags(QueueUrl=url))["Tags"]
                return tags["llama_deploy:expires_at"]

            first = await expires_at()

            async def is_put_off() -> bool:
                return await expires_at() > first

            await eventually(is_put_off)
        waiting.cancel()


async def test_a_subscription_outlives_the_removal_of_its_queue(server: SqsServer) -> None:
    async with (
        await settings(server.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        await queue.publish(numbered(0), TOPIC)
        (delivery,) = await receive(subscription)
        async with plain_client(server.endpoint_url) as client:
            url = (await client.get_queue_url(QueueName="namespace--service"))["QueueUrl"]
            await client.delete_queue(QueueUrl=url)
        await delivery.ack()
        await queue.publish(numbered(1), TOPIC)
        (delivery,) = await receive(subscription)
        assert number_of(delivery) == 1


async def test_a_reader_makes_its_queue_anew(server: SqsServer) -> None:
    async with (
        await settings(server.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
        plain_client(server.endpoint_url) as client,
    ):
        waiting = asyncio.create_task(subscription.receive(1))
        (url,) = (await client.list_queues())["QueueUrls"]
        await client.delete_queue(QueueUrl=url)

        async def is_there() -> bool:
            return bool((await client.list_queues()).get("QueueUrls"))

        await eventually(is_there)
        waiting.cancel()


async def test_what_is_no_message_is_put_aside(server: SqsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        await settings(server.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        async with plain_client(server.endpoint_url) as client:
            url = (await client.get_queue_url(QueueName="namespace--service"))["QueueUrl"]
            await client.send_message(QueueUrl=url, MessageBody="no message")
        await queue.publish(numbered(1), TOPIC)
        (delivery,) = await receive(subscription)
        assert number_of(delivery) == 1
        await delivery.ack()
    there = "ApproximateNumberOfMessages"
    assert await count_of(server.endpoint_url, there, "namespace--service--dead_letters") == 1
    assert await count_of(server.endpoint_url, there) == 0
    assert "dead letter" in caplog.text


async def test_what_kills_its_consumers_becomes_a_dead_letter(server: SqsServer) -> None:
    config = settings(server.endpoint_url, visibility_timeout=1, max_deliveries=2)
    async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        await queue.publish(numbered(1), TOPIC)
        for attempt in (1, 2):
            (delivery,) = await receive(subscription)
            assert delivery.attempt == attempt
        waiting = asyncio.create_task(subscription.receive(1))
        async with await queue.subscribe(f"{TOPIC}.dead_letters") as dead:
            assert number_of((await receive(dead))[0]) == 1
        assert not waiting.done()
        waiting.cancel()


async def test_only_the_message_that_is_too_large_is_refused(server: SqsServer) -> None:
    async with await settings(server.endpoint_url).connect() as queue:
        with pytest.raises(PayloadTooLargeError):
            await queue.publish(QueueMessage(data={"text": "x" * 1024 * 1024}), TOPIC)
        await queue.publish(numbered(0), TOPIC)
        async with plain_client(server.endpoint_url) as client:
            url = (await client.get_queue_url(QueueName="namespace--service"))["QueueUrl"]
            await client.set_queue_attributes(QueueUrl=url, Attributes={"MaximumMessageSize": "2048"})
        messages = [QueueMessage(data={"text": "x" * (4000 if number == 3 else 1)}) for number in range(8)]
        outcomes = await asyncio.gather(
            *(queue.publish(each, TOPIC) for each in messages), return_exceptions=True
        )
        assert [type(each) for each in outcomes] == [
            PayloadTooLargeError if number == 3 else type(None) for number in range(8)
        ]
    assert await count_of(server.endpoint_url, "ApproximateNumberOfMessages") == 8


async def test_large_messages_share_no_request(server: SqsServer) -> None:
    async with await settings(server.endpoint_url).connect() as queue, asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(queue.publish(QueueMessage(data={"text": "x" * 900_000}), TOPIC))
    assert await count_of(server.endpoint_url, "ApproximateNumberOfMessages") == 5


async def test_each_publisher_learns_of_its_own_message() -> None:
    async with ScriptedSqs() as service, await settings(service.endpoint_url).connect() as queue:

        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            first = len(service.entries("SendMessageBatch")) == 1
            failed = {"1": ("InternalError", False), "2": ("InvalidMessageContents", True)} if first else {}
            taken = [accepted(each) for each in asked["Entries"] if each["Id"] not in failed]
            not_taken = [
                refused(each, failed[each["Id"]][0], by_sender=failed[each["Id"]][1])
                for each in asked["Entries"]
                if each["Id"] in failed
            ]
            return {"Successful": taken, "Failed": not_taken}

        service.answers["SendMessageBatch"] = answer
        outcomes = await asyncio.gather(
            *(queue.publish(numbered(number), TOPIC) for number in range(4)), return_exceptions=True
        )
    assert [type(each) for each in outcomes] == [type(None), type(None), InvalidRequestError, type(None)]
    assert service.entries("SendMessageBatch") == [["0", "1", "2", "3"], ["1"]]


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalError"), (503, "ServiceUnavailable"), (400, "RequestThrottled"), (400, "OverLimit")],
)
async def test_what_passes_is_tried_again(status: int, code: str) -> None:
    async with ScriptedSqs() as service, await settings(service.endpoint_url).connect() as queue:

        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            if len(service.entries("SendMessageBatch")) < 3:
                raise Refusal(status, code)
            return {"Successful": [accepted(each) for each in asked["Entries"]]}

        service.answers["SendMessageBatch"] = answer
        await queue.publish(numbered(1), TOPIC)
        assert service.entries("SendMessageBatch") == [["0"]] * 3


async def test_throttling_that_lasts_is_an_error_in_time() -> None:
    def answer(_asked: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(400, "RequestThrottled")

    async with (
        ScriptedSqs() as service,
        await settings(service.endpoint_url, retry_seconds=0.3).connect() as queue,
    ):
        service.answers["SendMessageBatch"] = answer
        with pytest.raises(UnavailableError, match="RequestThrottled"):
            await queue.publish(numbered(1), TOPIC)


async def test_an_acknowledgement_that_fails_in_passing_is_sent_again() -> None:
    async with ScriptedSqs() as service, await settings(service.endpoint_url).connect() as queue:
        given = False

        def messages(_asked: dict[str, Any]) -> dict[str, Any]:
            nonlocal given
            given, before = True, given
            body = QueueMessage().encode().decode()
            handed = {"MessageId": "1", "ReceiptHandle": "handle", "Body": body}
            return {"Messages": [] if before else [handed | {"Attributes": {"ApproximateReceiveCount": "1"}}]}

        def verdicts(asked: dict[str, Any]) -> dict[str, Any]:
            if len(service.entries("DeleteMessageBatch")) == 1:
                return {
                    "Failed": [refused(each, "InternalError", by_sender=False) for each in asked["Entries"]]
                }
            return {"Successful": [{"Id": each["Id"]} for each in asked["Entries"]]}

        service.answers |= {"ReceiveMessage": messages, "DeleteMessageBatch": verdicts}
        async with await queue.subscribe(TOPIC) as subscription:
            (delivery,) = await receive(subscription)
            await delivery.ack()
        assert service.entries("DeleteMessageBatch") == [["0"], ["0"]]


async def test_a_service_that_does_not_wait_is_not_asked_without_pause() -> None:
    async with (
        ScriptedSqs() as service,
        await settings(service.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.receive(1), 1.0)
        assert 2 <= sum(name == "ReceiveMessage" for name, _ in service.requests) <= 5


async def test_credentials_that_are_refused_are_told_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(_asked: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(403, "InvalidClientTokenId")

    with caplog.at_level(logging.DEBUG, logger="llama_deploy"):
        async with ScriptedSqs() as service:
            config = settings(service.endpoint_url, aws_secret_access_key=SECRET)
            async with await config.connect() as queue:
                assert (
                    not {"aws_access_key_id", "aws_secret_access_key"}
                    & queue.as_config().public_settings().keys()
                )
                service.answers["SendMessageBatch"] = answer
                with pytest.raises(ConfigError, match="InvalidClientTokenId") as refused_:
                    await queue.publish(numbered(1), TOPIC)
            service.answers["ListQueues"] = answer
            with pytest.raises(ConfigError, match="InvalidClientTokenId"):
                await config.connect()
    assert "hush" not in f"{refused_.value} {caplog.text} {config!r} {config.public_settings()}"


async def test_a_reader_outlasts_refused_credentials(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_asked: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(403, "InvalidClientTokenId")

    def answer(_asked: dict[str, Any]) -> dict[str, Any]:
        body = numbered(1).encode().decode()
        attributes = {"ApproximateReceiveCount": "1"}
        return {"Messages": [{"Body": body, "ReceiptHandle": "receipt", "Attributes": attributes}]}

    caplog.set_level(logging.INFO)
    async with (
        ScriptedSqs() as service,
        await settings(service.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        service.answers["ReceiveMessage"] = answer
        assert len(await receive(subscription)) == 1
        service.answers["ReceiveMessage"] = refuse
        receiving = asyncio.create_task(receive(subscription))
        await eventually(lambda: sum(name == "ReceiveMessage" for name, _ in service.requests) >= 4)
        assert not receiving.done()
        service.answers["ReceiveMessage"] = answer
        (delivery,) = await receiving
        assert number_of(delivery) == 1
    told = [record.getMessage() for record in caplog.records if " access" in record.getMessage()]
    assert ["InvalidClientTokenId" in each and service.endpoint_url in each for each in told] == [True, False]
    assert told[1].endswith("grants access again")


async def test_a_reader_that_was_never_let_in_is_told() -> None:
    def refuse(_asked: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(403, "AccessDenied")

    async with (
        ScriptedSqs() as service,
        await settings(service.endpoint_url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        service.answers["ReceiveMessage"] = refuse
        with pytest.raises(ConfigError, match="AccessDenied"):
            await receive(subscription)


async def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with ScriptedSqs() as service:
        with pytest.raises(ConfigError, match="credentials"):
            await AWSMessageQueueConfig(endpoint_url=service.endpoint_url).connect()


async def test_credentials_of_the_environment_open_the_queue(
    monkeypatch: pytest.MonkeyPatch, server: SqsServer
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    async with await AWSMessageQueueConfig(endpoint_url=server.endpoint_url).connect() as queue:
        await queue.publish(numbered(1), TOPIC)
