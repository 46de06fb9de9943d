"""Amazon SQS as the message queue.

A topic is a standard queue (the pages are those of the "Amazon SQS Developer Guide" and its API reference):

* `SendMessageBatch` publishes ten messages per request. It answers for each message, so each publisher gets
  its own outcome.
* `ReceiveMessage` waits up to 20 seconds at the service ("Short and long polling"). It counts deliveries in
  `ApproximateReceiveCount`, and sets the visibility timeout ("Visibility timeout") of what it hands over.
* `ChangeMessageVisibilityBatch` extends or returns a delivery, `DeleteMessageBatch` acknowledges it.
* A group other than `default` is a queue of its own. Publishers send to the queue of each group; they find
  the groups by the names of the queues (`ListQueues`).

A publication returns when the service has stored the message on several servers ("Amazon SQS"). Settlements
are sent without waiting; one that is lost lets its message come back.

What differs: order is not kept. Delays and visibility timeouts are whole seconds, rounded up. The service
does not know which member holds what, so the messages of a dead one come back by the visibility timeout. A
topic is unbounded. Members move dead letters, and drop the queues of topics that have expired.
"""

from __future__ import annotations

from llama_deploy.message_queues.aws.config import AWSMessageQueueConfig
from llama_deploy.message_queues.aws.queue import AWSMessageQueue

__all__ = ["AWSMessageQueue", "AWSMessageQueueConfig"]
