"""The outbox, services and instances."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from datetime import timedelta
from typing import Any

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import OutboxRecord, ServiceRecord
from llama_deploy.testing.records import NOW, an_instance
from llama_deploy.testing.state_store_suite.base import StoreTests


class RowTests(StoreTests):
    """A store keeps the outbox, services and instances."""

    # -- outbox

    async def test_the_outbox_is_first_in_first_out(self, store: StateStore) -> None:
        messages = [OutboxRecord(message_id, f"topic.{message_id}", "{}") for message_id in "cab"]
        await store.transact(lambda tx: tx.outbox.insert(messages))
        first = await store.read(lambda tx: tx.outbox.load(limit=2))
        assert [*first.values()] == messages[:2]
        assert [*first] == sorted(first)
        second = await store.read(lambda tx: tx.outbox.load(after=max(first), limit=2))
        assert [*second.values()] == messages[2:]
        assert await store.read(lambda tx: tx.outbox.load(after=max(second))) == {}
        await store.transact(lambda tx: tx.outbox.delete(["c", "a", "unknown"]))
        late = OutboxRecord("late", "topic", "{}")
        await store.transact(lambda tx: tx.outbox.insert([late]))
        assert [*(await store.read(lambda tx: tx.outbox.load())).values()] == [messages[2], late]

    async def test_messages_are_read_by_topic_and_past_topics(self, store: StateStore) -> None:
        messages = [OutboxRecord(f"{topic}{n}", topic, "{}") for n in range(3) for topic in "abc"]
        await store.transact(lambda tx: tx.outbox.insert(messages))

        async def ids(**filters: Any) -> list[str]:
            found = await store.read(lambda tx: tx.outbox.load(**filters))
            return [item.message_id for item in found.values()]

        assert await ids(topic="b") == ["b0", "b1", "b2"]
        assert await ids(topic="b", limit=1) == ["b0"]
        assert await ids(topic="unknown") == []
        assert await ids(except_topics=["a", "b"]) == ["c0", "c1", "c2"]
        assert await ids(except_topics=["a", "b", "c"]) == []
        (first,) = await store.read(lambda tx: tx.outbox.load(topic="b", limit=1))
        assert await ids(topic="b", after=first) == ["b1", "b2"]
        assert await ids(except_topics=["a", "b"], after=first, limit=2) == ["c0", "c1"]
        taken = await store.transact(
            lambda tx: tx.outbox.take(now=NOW, until=NOW, except_topics=["a", "c"], limit=2)
        )
        assert [item.message_id for item in taken] == ["b0", "b1"]

    async def test_messages_are_taken_over_once_they_are_due(self, store: StateStore) -> None:
        due, later, until = (NOW + timedelta(seconds=n) for n in (0, 1, 60))
        messages = [
            OutboxRecord("a", "topic", "{}", relay_at=later),
            OutboxRecord("b", "topic", "{}", relay_at=due),
            OutboxRecord("c", "topic", "{}"),
            OutboxRecord("d", "topic", "{}", relay_at=due),
        ]
        await store.transact(lambda tx: tx.outbox.insert(messages))
        taken = await store.transact(lambda tx: tx.outbox.take(now=NOW, until=until, limit=2))
        assert taken == [item._replace(relay_at=until) for item in messages[1:3]]
        rest = await store.transact(lambda tx: tx.outbox.take(now=NOW, until=until))
        assert rest == [messages[3]._replace(relay_at=until)]
        assert [*(await store.read(lambda tx: tx.outbox.load())).values()] == [messages[0], *taken, *rest]

    # -- services and instances

    async def test_services_are_put_over_those_of_the_same_name(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.services.put([ServiceRecord("a", "1"), ServiceRecord("b", "1")]))
        await store.transact(lambda tx: tx.services.put([ServiceRecord("b", "2"), ServiceRecord("c", "2")]))
        everything = {name: ServiceRecord(name, definition) for name, definition in ("a1", "b2", "c2")}
        assert await store.read(lambda tx: tx.services.load()) == everything
        named = await store.read(lambda tx: tx.services.load(["b", "unknown"]))
        assert named == {"b": ServiceRecord("b", "2")}
        assert await store.read(lambda tx: tx.services.load([])) == {}

    async def test_deleting_a_service_deletes_its_instances(self, store: StateStore) -> None:
        other = an_instance("i2", service_name="other")

        def work(tx: StoreTransaction) -> None:
            tx.services.put([ServiceRecord("greeter", "{}"), ServiceRecord("other", "{}")])
            tx.instances.put([an_instance("i1"), other])
            tx.services.delete(["greeter", "unknown"])

        await store.transact(work)
        assert set(await store.read(lambda tx: tx.services.load())) == {"other"}
        assert await store.read(lambda tx: tx.instances.load()) == [other]

    async def test_instances_are_put_over_those_of_the_same_id(self, store: StateStore) -> None:
        later = an_instance()._replace(
            process_id="p1",
            waiting='[["t1", 1, 0]]',
            alone=True,
            host="127.0.0.1",
            port=65535,
            lease_expires_at=NOW + timedelta(hours=1),
            slots=8,
            running=2,
            blocked='[{"step": "think"}]',
        )
        await store.transact(lambda tx: tx.instances.put([an_instance(), an_instance("i2")]))
        await store.transact(lambda tx: tx.instances.put([later]))
        assert await store.read(lambda tx: tx.instances.load()) == [later, an_instance("i2")]

    async def test_instances_are_filtered_by_service_and_id(self, store: StateStore) -> None:
        records = [an_instance("i3"), an_instance("i1"), an_instance("i2", service_name="other")]
        await store.transact(lambda tx: tx.instances.put(records))

        async def found(
            *, service_names: list[str] | None = None, instance_ids: list[str] | None = None
        ) -> list[str]:
            loaded = await store.read(
                lambda tx: tx.instances.load(service_names=service_names, instance_ids=instance_ids)
            )
            return [instance.instance_id for instance in loaded]

        assert await found() == ["i1", "i2", "i3"]
        assert await found(service_names=["greeter", "unknown"]) == ["i1", "i3"]
        assert await found(instance_ids=["i3", "i2", "unknown"]) == ["i2", "i3"]
        assert await found(service_names=["greeter"], instance_ids=["i2", "i3"]) == ["i3"]
        assert await found(service_names=[]) == []
        assert await found(instance_ids=[]) == []

    async def test_services_and_instances_are_read_in_pages(self, store: StateStore) -> None:
        now = NOW
        records = [
            an_instance(f"i{n}", service_name=service_name)._replace(
                lease_expires_at=now + timedelta(seconds=n), blocked="[]" if n == 1 else None
            )
            for service_name in ("a", "b")
            for n in (range(4) if service_name == "a" else range(4, 6))
        ]
        await store.transact(
            lambda tx: (
                tx.services.put([ServiceRecord(name, "{}") for name in ("b", "c", "a")]),
                tx.instances.put(records),
            )
        )
        pages = await store.read(
            lambda tx: [tx.services.page(limit=2), tx.services.page(after="b"), tx.services.page(after="c")]
        )
        assert [[each.service_name for each in page] for page in pages] == [["a", "b"], ["c"], []]
        page = await store.read(lambda tx: tx.instances.page("a", after="i0", limit=2))
        assert [each.instance_id for each in page] == ["i1", "i2"]
        first = await store.read(lambda tx: tx.instances.first(["a", "b", "c"], most=2))
        assert [each.instance_id for each in first] == ["i1", "i3", "i5", "i4"]
        counts = await store.read(lambda tx: tx.instances.counts(["a", "b", "c"], now=now))
        assert counts == {"a": (4, 3), "b": (2, 2)}

    async def test_deleting_instances_ignores_unknown_ones(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.instances.put([an_instance("i1"), an_instance("i2")]))
        await store.transact(lambda tx: tx.instances.delete(["i1", "unknown"]))
        assert await store.read(lambda tx: tx.instances.load()) == [an_instance("i2")]
