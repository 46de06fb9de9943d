"""One instance of each service named by the arguments, in one process; all of them if none is named.

`FLOW_TIMEOUT` is the time limit of their runs, in seconds; without it they have none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from tests.faults.programs.flows import FLOWS, Answer

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig
from llama_deploy.deploy import run_workflow
from llama_deploy.deploy.together import run_together


async def host(names: list[str]) -> None:
    url = ControlPlaneConfig().url
    timeout = float(os.environ["FLOW_TIMEOUT"]) if "FLOW_TIMEOUT" in os.environ else None
    allowed = [f"{Answer.__module__}.{Answer.__qualname__}"]
    await run_together(
        *(
            run_workflow(
                FLOWS[name](timeout=timeout),
                WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=name, allowed_types=allowed),
                control_plane_url=url,
            )
            for name in names
        )
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(host(sys.argv[1:] or list(FLOWS)))
