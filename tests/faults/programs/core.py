"""Queue and control plane in one process, or one of them; settings come from the environment."""

from __future__ import annotations

import asyncio
import logging
import sys

from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, SimpleOrchestratorConfig, deploy_core

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    part = sys.argv[1] if len(sys.argv) > 1 else "both"
    asyncio.run(
        deploy_core(
            control_plane_config=ControlPlaneConfig(),
            message_queue_config=SimpleMessageQueueConfig(),
            orchestrator_config=SimpleOrchestratorConfig(),
            disable_message_queue=part == "control_plane",
            disable_control_plane=part == "message_queue",
        )
    )
