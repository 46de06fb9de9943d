"""Apache Kafka as a message queue, over aiokafka; Kafka 2.4 or later, or what speaks its protocol.

What carries the contract, with the pages of Kafka's documentation:

* "Topic Configs": a topic is a topic of Kafka with `partitions` partitions, over which its messages are
  spread, created through the admin API when it is first used. "Producer Configs": a publication returns when
  all replicas in sync have it (`acks=all`).
* "Consumer Configs": each group of a topic is a consumer group, whose members share the partitions. The group
  `default` begins at the first message (`auto.offset.reset`); for another, the ends of all partitions are
  committed before its first member joins.
* Settled is what lies before the committed offset. A member commits, for each partition, the offset of the
  first message that is not settled, so that a member that dies loses nothing.
* What comes back (a nack, a visibility timeout, a partition that moves to another member) is written to the
  topic again, as a copy whose headers say for which group it is, how often it was delivered and when it is
  due; see `envelope`. Other groups pass it by. Dead letters go to the topic `{topic}.dead_letters`.

All of it is durable, as far as the replicas are.

What differs. A partition belongs to one member, so at most as many members get messages as there are
partitions. A member that asks for nothing moves what waits in its partitions to those of others, a few
messages at a time. A topic is bounded by its retention only, and keeps no order. Kafka drops what is older
than `retention`, read or not; `expires_after` shortens that, the empty topic stays. A member is brought in
by a rebalance, which takes Kafka up to three seconds for the first and a heartbeat for the others; the
messages of a member that dies come back after `session_timeout`. They count as not delivered, and so does
what a restart gives again.
"""

from llama_deploy.message_queues.kafka.config import KafkaMessageQueueConfig
from llama_deploy.message_queues.kafka.queue import KafkaMessageQueue

__all__ = ["KafkaMessageQueue", "KafkaMessageQueueConfig"]
