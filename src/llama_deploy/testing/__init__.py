"""For tests of your own: the contracts that the parts keep as suites to inherit, and tools to drive them.

* `message_queue_suite.MessageQueueContract`: what every message queue does.
* `state_store_suite.StateStoreContract`: what every state store does.
* `conditions.eventually`: waits for a condition with a deadline, in place of sleeping.
* `processes.Program`: a Python program as a process that is watched, killed, and never left behind.

The suites need pytest and pytest-asyncio, in any of its modes; the tools need neither.
"""

from __future__ import annotations

import sys

if "pytest" in sys.modules:
    import pytest

    # So that a failing assert of a suite says what it compared, as those of the inheriting module do.
    pytest.register_assert_rewrite(f"{__name__}.message_queue_suite", f"{__name__}.state_store_suite")
