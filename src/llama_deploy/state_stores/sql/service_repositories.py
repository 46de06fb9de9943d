"""The outbox, services and instances in SQL."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from llama_deploy.state_stores.records import InstanceRecord, OutboxRecord, ServiceRecord, VersionRecord
from llama_deploy.state_stores.repositories import InstanceRepository, OutboxRepository, ServiceRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, ids, limit, pad, upserts
from llama_deploy.state_stores.sql.queries import Mapper, Query, Update
from llama_deploy.state_stores.sql.tables import instances, outbox, services, versions

_FARTHEST = timedelta(seconds=60)
"""How much later than now messages may be due at most, beyond what was asked for: clocks may differ."""
_OUTBOX = Mapper(OutboxRecord, outbox)
_SERVICE = Mapper(ServiceRecord, services)
_INSTANCE = Mapper(InstanceRecord, instances)
_VERSION = Mapper(VersionRecord, versions)

_outbox_oldest = sa.select(*_OUTBOX.columns).order_by(outbox.c.position).limit(limit)
_outbox_after = (
    sa.select(*_OUTBOX.columns, outbox.c.position)
    .where(outbox.c.position > sa.bindparam("after"))
    .order_by(outbox.c.position)
    .limit(limit)
)
_is_for_others = outbox.c.topic.not_in(ids)
_OUTBOX_AFTER = Query.of(_outbox_after)
_OUTBOX_AFTER_OF_OTHERS = Query.of(_outbox_after.where(_is_for_others))
_OUTBOX_AFTER_OF_TOPIC = Query.of(_outbox_after.where(outbox.c.topic == sa.bindparam("topic")))
_outbox_due = _outbox_oldest.where(
    sa.or_(
        outbox.c.relay_at.is_(None),
        outbox.c.relay_at <= sa.bindparam("now"),
        outbox.c.relay_at > sa.bindparam("impossible"),
    )
)
_OUTBOX_DUE = _outbox_due.with_for_update(skip_locked=True)
_OUTBOX_DUE_OF_OTHERS = _outbox_due.where(_is_for_others).with_for_update(skip_locked=True)
_INSERT_OUTBOX = sa.insert(outbox).inline()
_UPDATE_OUTBOX = Update(_OUTBOX, key="message_id", fields=["relay_at"])
_DELETE_OUTBOX = (sa.delete(outbox).where(outbox.c.message_id.in_(ids)),)

_SERVICES = Query.kept(sa.select(*_SERVICE.columns))
_SERVICES_BY_NAME = Query.kept(_SERVICE.where(services.c.service_name.in_(ids)))
_SERVICES_AFTER = Query.unlocked(
    _SERVICE.where(services.c.service_name > sa.bindparam("after"))
    .order_by(services.c.service_name)
    .limit(limit)
)
_PUT_SERVICES = upserts(services)
_DELETE_SERVICES = tuple(
    sa.delete(table).where(table.c.service_name.in_(ids)) for table in (instances, versions, services)
)

_VERSIONS_BY_SERVICE = Query.unlocked(_VERSION.where(versions.c.service_name.in_(ids)))
_PUT_VERSIONS = upserts(versions)
_DELETE_UNUSED_VERSIONS = (
    sa.delete(versions).where(
        versions.c.service_name.in_(ids),
        ~sa.exists().where(
            instances.c.service_name == versions.c.service_name, instances.c.version == versions.c.version
        ),
    ),
)

_INSTANCES = Query.of(sa.select(*_INSTANCE.columns), in_order_of=instances.c.instance_id)
_INSTANCES_BY_ID = Query.of(
    _INSTANCE.where(instances.c.instance_id.in_(ids)),
    in_order_of=instances.c.instance_id,
)
_INSTANCES_BY_SERVICE = Query.of(
    _INSTANCE.where(instances.c.service_name.in_(ids)),
    in_order_of=instances.c.instance_id,
)
_INSTANCES_AFTER = Query.unlocked(
    _INSTANCE.where(
        instances.c.service_name == sa.bindparam("name"), instances.c.instance_id > sa.bindparam("after")
    )
    .order_by(instances.c.instance_id)
    .limit(limit)
)
_rank = sa.func.row_number().over(
    partition_by=instances.c.service_name,
    order_by=(
        instances.c.blocked.is_(None),
        instances.c.lease_expires_at.desc(),
        instances.c.instance_id,
    ),
)
_ranked = _INSTANCE.where(instances.c.service_name.in_(ids)).add_columns(_rank.label("rank")).subquery()
_FIRST_INSTANCES = Query.unlocked(
    sa.select(*(_ranked.c[name] for name in _INSTANCE.names))
    .where(_ranked.c.rank <= sa.bindparam("most", type_=sa.Integer))
    .order_by(_ranked.c.service_name, _ranked.c.rank)
)
_is_alive = instances.c.lease_expires_at > sa.bindparam("now", type_=instances.c.lease_expires_at.type)
_COUNTS = Query.unlocked(
    sa.select(instances.c.service_name, sa.func.count(), sa.func.sum(sa.case((_is_alive, 1), else_=0)))
    .where(instances.c.service_name.in_(ids))
    .group_by(instances.c.service_name)
)
_INSTANCES_UNLOCKED = Query.unlocked(_INSTANCE.where(instances.c.service_name.in_(ids)))
_PUT_INSTANCES = upserts(instances)
_DELETE_INSTANCES = (sa.delete(instances).where(instances.c.instance_id.in_(ids)),)


class SQLOutbox(SQLRepository, OutboxRepository):
    """Messages in the table `outbox`."""

    def load(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        topic: str | None = None,
        except_topics: Collection[str] = (),
    ) -> dict[int, OutboxRecord]:
        page: dict[str, object] = {"after": after, "limit": limit}
        if topic is not None:
            rows = self._access.rows(_OUTBOX_AFTER_OF_TOPIC, {**page, "topic": topic})
        elif except_topics:
            rows = self._access.rows(_OUTBOX_AFTER_OF_OTHERS, {**page, IDS: pad(except_topics)})
        else:
            rows = self._access.rows(_OUTBOX_AFTER, page)
        return {row[-1]: _OUTBOX.record(row[:-1]) for row in rows}

    def take(
        self, *, now: datetime, until: datetime, limit: int = 1000, except_topics: Collection[str] = ()
    ) -> list[OutboxRecord]:
        execute = self._access.connection.execute
        page = {"now": now, "impossible": until + _FARTHEST, "limit": limit}
        if except_topics:
            found = execute(_OUTBOX_DUE_OF_OTHERS, {**page, IDS: pad(except_topics)})
        else:
            found = execute(_OUTBOX_DUE, page)
        taken = [_OUTBOX.record(row)._replace(relay_at=until) for row in found]
        self._access.update(_UPDATE_OUTBOX, taken)
        return taken

    def insert(self, messages: Sequence[OutboxRecord]) -> None:
        self._access.write(_INSERT_OUTBOX, _OUTBOX.rows(messages))

    def delete(self, message_ids: Collection[str]) -> None:
        self._access.execute_for(_DELETE_OUTBOX, message_ids)


class SQLServices(SQLRepository, ServiceRepository):
    """Services in the table `services`."""

    def load(self, service_names: Collection[str] | None = None) -> dict[str, ServiceRecord]:
        rows = (
            self._access.rows(_SERVICES, {})
            if service_names is None
            else self._access.rows_by_ids(_SERVICES_BY_NAME, service_names)
        )
        return {service.service_name: service for service in map(_SERVICE.record, rows)}

    def page(self, *, after: str = "", limit: int = 1000) -> list[ServiceRecord]:
        rows = self._access.rows(_SERVICES_AFTER, {"after": after, "limit": limit})
        return [_SERVICE.record(row) for row in rows]

    def put(self, services: Sequence[ServiceRecord]) -> None:
        self._access.put(_PUT_SERVICES, _SERVICE.rows(services))

    def delete(self, service_names: Collection[str]) -> None:
        self._access.execute_for(_DELETE_SERVICES, service_names)

    def load_versions(self, service_names: Collection[str]) -> list[VersionRecord]:
        return sorted(map(_VERSION.record, self._access.rows_by_ids(_VERSIONS_BY_SERVICE, service_names)))

    def put_versions(self, versions: Sequence[VersionRecord]) -> None:
        self._access.put(_PUT_VERSIONS, _VERSION.rows(versions))

    def delete_unused_versions(self, service_names: Collection[str]) -> None:
        self._access.execute_for(_DELETE_UNUSED_VERSIONS, service_names)


class SQLInstances(SQLRepository, InstanceRepository):
    """Instances in the table `instances`."""

    def load(
        self, *, service_names: Collection[str] | None = None, instance_ids: Collection[str] | None = None
    ) -> list[InstanceRecord]:
        names = None if service_names is None else frozenset(service_names)
        rows: Iterable[Sequence[Any]]
        if instance_ids is not None:
            rows = self._access.rows_by_ids(_INSTANCES_BY_ID, instance_ids)
        elif names is not None:
            rows = self._access.rows_by_ids(_INSTANCES_BY_SERVICE, names)
        else:
            rows = self._access.rows(_INSTANCES, {})
        found = map(_INSTANCE.record, rows)
        matching = (each for each in found if names is None or each.service_name in names)
        return sorted(matching, key=attrgetter("instance_id"))

    def page(self, service_name: str, *, after: str = "", limit: int = 1000) -> list[InstanceRecord]:
        parameters = {"name": service_name, "after": after, "limit": limit}
        return [_INSTANCE.record(row) for row in self._access.rows(_INSTANCES_AFTER, parameters)]

    def first(self, service_names: Collection[str], *, most: int) -> list[InstanceRecord]:
        rows = self._access.rows_by_ids(_FIRST_INSTANCES, service_names, {"most": most})
        return [_INSTANCE.record(row) for row in rows]

    def counts(self, service_names: Collection[str], *, now: datetime) -> dict[str, tuple[int, int]]:
        rows = self._access.rows_by_ids(_COUNTS, service_names, {"now": now})
        return {name: (total, alive) for name, total, alive in rows}

    def look(self, service_names: Collection[str]) -> list[InstanceRecord]:
        found = map(_INSTANCE.record, self._access.rows_by_ids(_INSTANCES_UNLOCKED, service_names))
        return sorted(found, key=attrgetter("instance_id"))

    def put(self, instances: Sequence[InstanceRecord]) -> None:
        self._access.put(_PUT_INSTANCES, _INSTANCE.rows(instances))

    def delete(self, instance_ids: Collection[str]) -> None:
        self._access.execute_for(_DELETE_INSTANCES, instance_ids)
