"""RabbitMQ as a message queue, over AMQP 0-9-1; RabbitMQ 3.10 or later.

What carries the contract, with the pages of RabbitMQ's documentation:

* "Quorum Queues", "Publisher Confirms": a topic is a routing key of one durable direct exchange, and each
  group of it a quorum queue bound to that key. A publication returns when a majority of the replicas has it
  on disk. One that no queue would get comes back (`mandatory`), and the topic is created again.
* "Consumer Prefetch": a consumer's prefetch is what the caller of `receive` asks for; the consumer is
  cancelled or replaced when that is less. Each acknowledgement lets the broker send one message more, so it
  is sent when there is room for one, or after 50 ms, behind such a change.
* "Poison Message Handling", "Dead Lettering" (at least once): `x-delivery-limit` and a dead-letter exchange
  put aside what is never acknowledged, in the quorum queue of the topic `{topic}.dead_letters`.
* "Queue Length Limit": `x-max-length` with `reject-publish` bounds a topic, roughly; a full one takes
  messages again when it has shrunk to four fifths. "Time-To-Live": `x-expires` drops topics without readers.

All of it is durable: exchange, queues, bindings, messages and how often each was delivered.

What the broker does not do, a subscription does with its own timers: it returns what is neither settled
nor extended in time, and keeps back what is nacked with a delay. The broker returns what a dead process held
at once, and what a silent one held after two heartbeats ("Heartbeats"). It ends a channel on which a delivery
is unsettled for 30 minutes ("Delivery Acknowledgement Timeout"): whatever it is extended or delayed by, a
delivery goes back to its group after nine tenths of `ack_timeout`.

What differs: a message that was sent to a member but not handed out when it closes counts as delivered. A
full group pushes back the publishers of the whole topic. What a dead member held comes back when its
connection ends, or by the visibility timeout.
"""

from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.queue import RabbitMQMessageQueue

__all__ = ["RabbitMQMessageQueue", "RabbitMQMessageQueueConfig"]
