"""Run the message queue and the control plane in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.http.callers import ControlPlaneCallers, requires_keys
from llama_deploy.deploy.garbage import seldom_collecting
from llama_deploy.deploy.termination import stopped_by_signals
from llama_deploy.errors import ConfigError
from llama_deploy.message_queues import (
    AbstractMessageQueue,
    MessageQueueConfig,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.web.edge.authentication import Authenticator


@ends_quietly
async def deploy_core(
    control_plane_config: ControlPlaneConfig | None = None,
    message_queue_config: MessageQueueConfig | None = None,
    orchestrator_config: SimpleOrchestratorConfig | None = None,
    disable_message_queue: bool = False,  # noqa: FBT001, FBT002 - 0.6 API
    disable_control_plane: bool = False,  # noqa: FBT001, FBT002 - 0.6 API
) -> None:
    """Run the message queue and the control plane until cancelled, then close them in order.

    SIGTERM has the effect of a cancellation, and then ends the process.

    Args:
        control_plane_config: Settings of the control plane. None: from the environment and the defaults.
        message_queue_config: Settings of the queue. The server of a simple queue runs here; other brokers run
            on their own. None: a simple queue, from the environment and the defaults.
        orchestrator_config: Settings of the orchestrator. None: from the environment and the defaults.
        disable_message_queue: Do not run the server of the simple queue here.
        disable_control_plane: Do not run the control plane here.

    Raises:
        ConfigError: A setting cannot work, an address cannot be bound, or there is nothing to run.
        StoreLockedError: Another control plane uses the store.
        UnavailableError: The queue or the store does not answer.
        Exception: The error of the part that failed.
    """
    config = control_plane_config or ControlPlaneConfig()
    queue_config = message_queue_config or SimpleMessageQueueConfig()
    serves_queue = isinstance(queue_config, SimpleMessageQueueConfig) and not disable_message_queue
    if disable_control_plane and not serves_queue:
        raise ConfigError(
            "deploy_core has nothing to run: the control plane is disabled, and the queue is disabled "
            "or is a broker that runs on its own"
        )
    with stopped_by_signals(0.0), seldom_collecting():
        async with AsyncExitStack() as stack:
            callers = None if disable_control_plane else await open_callers(stack, config)
            queue = await open_queue(
                stack,
                queue_config,
                served=serves_queue,
                also_reached_as=[config.host, *config.trusted_hosts],
                callers=callers,
            )
            if disable_control_plane:
                await asyncio.Event().wait()
            control_plane = ControlPlaneServer(
                queue,
                orchestrator=SimpleOrchestrator(orchestrator_config),
                config=config,
                callers=callers,
                state_store=None if callers is None else callers.store,
            )
            await control_plane.launch_server()


async def open_callers(stack: AsyncExitStack, config: ControlPlaneConfig) -> ControlPlaneCallers | None:
    """Return who may use a control plane and the queue beside it. None: everybody.

    Args:
        stack: Closes the state store, which is opened for this.
        config: Settings of the control plane.

    Raises:
        ConfigError: A setting cannot work.
        StoreLockedError: Another control plane uses the store.
        UnavailableError: The store does not answer.
    """
    if not requires_keys(config):
        return None
    store = await stack.enter_async_context(await open_state_store(config.store_uri))
    return ControlPlaneCallers(config, store)


async def open_queue(
    stack: AsyncExitStack,
    config: MessageQueueConfig,
    *,
    also_reached_as: Sequence[str],
    served: bool = True,
    callers: Authenticator | None = None,
) -> AbstractMessageQueue:
    """Return the queue for a control plane. `stack` closes it, and its server if there is one.

    Args:
        stack: Closes what is opened.
        config: Settings of the queue.
        also_reached_as: The hosts under which the control plane is reached. Instances reach a simple queue
            that listens on all addresses under the same ones.
        served: Whether the server of a simple queue runs here.
        callers: Identifies the callers of the control plane. A simple queue without an `api_key` of its own
            has the same ones. None: everybody.

    Raises:
        ConfigError: A setting cannot work, or an address cannot be bound.
        UnavailableError: The broker does not answer.
    """
    if served and isinstance(config, SimpleMessageQueueConfig):
        hosts = [*config.trusted_hosts, *also_reached_as]
        server = await stack.enter_async_context(
            SimpleMessageQueueServer(
                config.model_copy(update={"trusted_hosts": hosts}),
                authenticator=callers if config.api_key is None else None,
            )
        )
        return await stack.enter_async_context(server.local_queue())
    return await stack.enter_async_context(await config.connect())
