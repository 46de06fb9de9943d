"""Services and instances in numbers that do not fit into one answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, ServiceRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest


async def test_thousands_of_services_and_instances_are_listed_in_pages(tmp_path: Path) -> None:
    config = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")
    names = [f"s{n:04}" for n in range(2500)]
    now = datetime.now(UTC)

    def fill(tx: StoreTransaction) -> None:
        definitions = [(name, json.dumps({"service_name": name})) for name in names]
        tx.services.put([ServiceRecord(*each) for each in definitions])
        crowd = [("s0001", f"i{n:04}", n % 2) for n in range(3000)]
        tx.instances.put(
            [
                InstanceRecord(instance_id, name, None, None, now, now + timedelta(hours=alive))
                for name, instance_id, alive in crowd
            ]
        )

    async with (
        await open_state_store(config.store_uri) as store,
        await LocalMessageQueue.start() as queue,
        ControlPlaneServer(queue, state_store=store, config=config) as server,
        Client(server.config.url) as client,
    ):
        await store.transact(fill)
        found = await client.core.services.list()
        assert [service.id for service in found] == names
        crowded = found[1]
        assert (crowded.instances_total, crowded.count_alive(), len(crowded.instances)) == (3000, 1500, 10)
        assert all(instance.alive for instance in crowded.instances)
        page = await client.core.services.page(after="s0999", limit=2)
        assert [service.id for service in page] == ["s1000", "s1001"]
        http = HttpConnection(server.config.url)
        first = await http.request(HttpRequest("GET", "/services/s0001", params={"limit": 2}))
        second = await http.request(
            HttpRequest("GET", "/services/s0001", params={"limit": 2, "after": "i0001"})
        )
        await http.close()
        ids = [each["instance_id"] for answer in (first, second) for each in answer["instances"]]
        assert ids == ["i0000", "i0001", "i0002", "i0003"]
