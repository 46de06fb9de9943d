"""For tests of your own: the contracts that the parts keep, as suites to inherit.

* `message_queue_suite.MessageQueueContract`: what every message queue does.
* `state_store_suite.StateStoreContract`: what every state store does.

The suites need pytest and pytest-asyncio.
"""
