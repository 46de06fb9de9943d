"""NATS JetStream as a message queue.

What carries the contract (the pages are those of the NATS documentation, https://docs.nats.io):

* "Streams": all topics live in one stream, a topic being a subject of it, with the retention `interest`: a
  message is kept until every group has settled it. A work-queue stream would allow one group only. A topic
  is full by `max_msgs_per_subject` with the discard policy `new`.
* "Consumers": a group is a durable pull consumer, filtered to its topic, with explicit acknowledgement.
  Creating a topic means creating the consumer of its group `default`, before the first message is stored.
* "Pull consumers", options `no_wait` and `expires`: one request waits, and ends with the messages that are
  there at once; nothing is prefetched. Idle heartbeats distinguish a lost request from a quiet topic.
* "Acknowledging messages": `+ACK`, `-NAK` with a delay, `+WPI` to extend, `+TERM` for dead letters.
* "Message deduplication": by topic and message id, so that a publication can be repeated after a loss.

A publication returns when the stream has the message: in a file, which survives the death of the server;
see `sync_interval` in "Configuring JetStream" for the death of its machine. With `storage="memory"` nothing
survives. Settlements are sent without waiting; one that is lost lets its message come back.

What differs: the server counts deliveries, and the member that gets a message too often moves it to the dead
letters. A server does not know which member holds what, so the messages of a dead one come back by the
visibility timeout, which is short for that reason.
"""

from llama_deploy.message_queues.nats.config import NatsMessageQueueConfig
from llama_deploy.message_queues.nats.queue import NatsMessageQueue

__all__ = ["NatsMessageQueue", "NatsMessageQueueConfig"]
