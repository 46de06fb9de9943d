"""Queue and control plane in one process, or one of them; settings come from the environment.

`LLAMA_DEPLOY_QUEUE` is the URL of a broker; without it, the queue is a simple one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, SimpleOrchestratorConfig, deploy_core
from llama_deploy.message_queues import config_from_url

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    part = sys.argv[1] if len(sys.argv) > 1 else "both"
    broker = os.environ.get("LLAMA_DEPLOY_QUEUE")
    asyncio.run(
        deploy_core(
            control_plane_config=ControlPlaneConfig(),
            message_queue_config=config_from_url(broker) if broker else SimpleMessageQueueConfig(),
            orchestrator_config=SimpleOrchestratorConfig(),
            disable_message_queue=part == "control_plane",
            disable_control_plane=part == "message_queue",
        )
    )
