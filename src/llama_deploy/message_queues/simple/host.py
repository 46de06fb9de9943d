"""A broker together with its journal, from start to end."""

from __future__ import annotations

import asyncio
import logging

from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.queue_journal import Journal

logger = logging.getLogger(__name__)


class BrokerHost:
    """A running broker: `await BrokerHost.start(config)`, then `close` it."""

    def __init__(self, broker: SimpleBroker, journal: Journal | None) -> None:
        self.broker = broker
        self._journal = journal

    @classmethod
    async def start(cls, config: SimpleMessageQueueConfig) -> BrokerHost:
        """Open the journal, if the settings name one, and restore what it holds.

        Raises:
            ConfigError: The journal cannot be used.
        """
        clock = asyncio.get_running_loop()
        if config.journal_path is None:
            return cls(SimpleBroker(clock=clock, limits=config.limits), None)
        journal = await Journal.open(config.journal_path)
        try:
            stored = await journal.load()
            broker = SimpleBroker(clock=clock, limits=config.limits, journal=journal, stored=stored)
        except BaseException:
            await journal.close()
            raise
        logger.info(
            "restored %d messages in %d topics from %s",
            len(stored.messages),
            len(stored.topics),
            config.journal_path,
            extra={"action": "restore"},
        )
        return cls(broker, journal)

    async def close(self) -> None:
        """End all waiting, write what waits, close the journal. Idempotent; deletes nothing."""
        self.broker.close()
        if self._journal is not None:
            await self._journal.close()
