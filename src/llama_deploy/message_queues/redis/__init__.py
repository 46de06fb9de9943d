"""Redis and Valkey as the message queue.

A topic is a stream that consumer groups read (Redis documentation, "Streams"; Redis 6.2 or later, any
Valkey):

* `XADD` takes a message, `XREADGROUP BLOCK` waits for the next ones. `XLEN` bounds a topic: an entry is
  deleted (`XDEL`) when every group is done with it, and never before.
* A group's pending entries (`XPENDING`) are what is unsettled, with the number of their deliveries and the
  time since the last. `XCLAIM` hands what is due to another member; with `JUSTID` it keeps what is worked on.
* A sorted set per group keeps the deadlines that are not the visibility timeout: of extended and of returned
  messages. A small stream, the bell, wakes waiting members.
* Whatever takes more than one command is in `actions.lua` ("Scripting with Lua"), which runs atomically.

Durable is what the append-only file holds ("Persistence"): with `appendfsync always` every accepted message,
with the default `everysec` all but the last second or two. `durable` says whether there is such a file.

What differs: deadlines go by the server's clock; a cluster is not supported, a replica that takes over is.
"""

from __future__ import annotations

from llama_deploy.message_queues.redis.config import RedisMessageQueueConfig
from llama_deploy.message_queues.redis.queue import RedisMessageQueue

__all__ = ["RedisMessageQueue", "RedisMessageQueueConfig"]
