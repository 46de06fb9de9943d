"""A store transaction over a connection, the same on every SQL database."""

from __future__ import annotations

from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.sql.access import SQLAccess
from llama_deploy.state_stores.sql.api_key_rows import SQLApiKeys
from llama_deploy.state_stores.sql.audit_rows import SQLAudit
from llama_deploy.state_stores.sql.feed_rows import SQLFeeds
from llama_deploy.state_stores.sql.list_repositories import SQLSteps, SQLTaskLists
from llama_deploy.state_stores.sql.queries import Connection
from llama_deploy.state_stores.sql.question_repositories import SQLQuestions
from llama_deploy.state_stores.sql.retention_repository import SQLRetention
from llama_deploy.state_stores.sql.run_repositories import SQLEvents, SQLInbox, SQLRuns
from llama_deploy.state_stores.sql.service_repositories import SQLInstances, SQLOutbox, SQLServices
from llama_deploy.state_stores.sql.task_repositories import SQLSessions, SQLTasks


class SQLTransaction(StoreTransaction):
    """The store's rows in the transaction that is open on `connection`.

    Args:
        connection: As for `SQLAccess`.
        lock_rows: As for `SQLAccess`.
    """

    def __init__(self, connection: Connection, *, lock_rows: bool) -> None:
        access = SQLAccess(connection, lock_rows=lock_rows)
        super().__init__(
            sessions=SQLSessions(access),
            tasks=SQLTasks(access),
            task_lists=SQLTaskLists(access),
            steps=SQLSteps(access),
            events=SQLEvents(access),
            feeds=SQLFeeds(access),
            inbox=SQLInbox(access),
            runs=SQLRuns(access),
            questions=SQLQuestions(access),
            retention=SQLRetention(access),
            outbox=SQLOutbox(access),
            services=SQLServices(access),
            instances=SQLInstances(access),
            api_keys=SQLApiKeys(access),
            audit=SQLAudit(access),
        )
        self._connection = connection
