"""For tests of your own: the contracts that the parts keep as suites to inherit, and tools to drive them.

* `message_queue_suite.MessageQueueContract`: what every message queue does.
* `message_queue_outages.MessageQueueOutages`: a message queue loses nothing when its broker fails.
* `state_store_suite.StateStoreContract`: what every state store does.
* `replays.replay`: replays an exported run against the present code, and tells the first step that differs.
* `conditions.eventually`: waits for a condition with a deadline, in place of sleeping.
* `tcp_proxy.TcpProxy`: a proxy that fails as networks do.
* `processes.Program`: a Python program as a process that is watched, killed, and never left behind.

The suites need pytest and pytest-asyncio, in any of its modes; the tools need neither.
"""

from __future__ import annotations

import sys

if "pytest" in sys.modules:
    import pytest

    # A failing assert of a suite then shows what it compared, as those of the inheriting module do.
    for suite in ("message_queue_suite", "message_queue_outages", "state_store_suite"):
        pytest.register_assert_rewrite(f"{__name__}.{suite}")
