"""Names that programs written for 0.5 and 0.6 import are still there, in the modules of that time."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PUBLIC = """
llama_deploy
    AsyncLlamaDeployClient CallableMessageConsumer Client ControlPlaneConfig ControlPlaneServer
    LlamaDeployClient QueueMessage SimpleMessageQueue SimpleMessageQueueConfig
    SimpleMessageQueueServer SimpleOrchestrator SimpleOrchestratorConfig WorkflowService
    WorkflowServiceConfig deploy_core deploy_workflow
llama_deploy.cli
    llamactl
llama_deploy.cli.__main__
    main
llama_deploy.client
    AsyncLlamaDeployClient Client LlamaDeployClient
llama_deploy.client.async_client
    AsyncLlamaDeployClient AsyncSessionClient DEFAULT_POLL_INTERVAL DEFAULT_TIMEOUT
llama_deploy.client.client
    Client
llama_deploy.client.models
    ApiServer Core
llama_deploy.client.models.apiserver
    ApiServer Deployment DeploymentCollection SessionCollection Task TaskCollection
llama_deploy.client.models.core
    Core Service ServiceCollection Session SessionCollection
llama_deploy.client.sync_client
    DEFAULT_POLL_INTERVAL DEFAULT_TIMEOUT LlamaDeployClient SessionClient
llama_deploy.control_plane
    BaseControlPlane ControlPlaneConfig ControlPlaneServer
llama_deploy.control_plane.base
    BaseControlPlane
llama_deploy.control_plane.config
    ControlPlaneConfig
llama_deploy.control_plane.server
    CONTROL_PLANE_MESSAGE_TYPE ControlPlaneServer
llama_deploy.deploy
    deploy_core deploy_workflow
llama_deploy.deploy.deploy
    DEFAULT_TIMEOUT deploy_core deploy_workflow
llama_deploy.deploy.network_workflow
    NetworkWorkflow
llama_deploy.message_consumers
    BaseMessageQueueConsumer CallableMessageConsumer
llama_deploy.message_consumers.base
    BaseMessageQueueConsumer StartConsumingCallable
llama_deploy.message_consumers.callable
    CallableMessageConsumer
llama_deploy.message_consumers.remote
    RemoteMessageConsumer
llama_deploy.message_publishers
    MessageQueuePublisherMixin
llama_deploy.message_publishers.publisher
    MessageQueuePublisherMixin
llama_deploy.message_queues
    AWSMessageQueue AWSMessageQueueConfig AbstractMessageQueue KafkaMessageQueue
    KafkaMessageQueueConfig RabbitMQMessageQueue RabbitMQMessageQueueConfig RedisMessageQueue
    RedisMessageQueueConfig SimpleMessageQueue SimpleMessageQueueConfig SimpleMessageQueueServer
    SolaceMessageQueue SolaceMessageQueueConfig
llama_deploy.message_queues.apache_kafka
    KafkaMessageQueue KafkaMessageQueueConfig
llama_deploy.message_queues.aws
    AWSMessageQueue AWSMessageQueueConfig
llama_deploy.message_queues.base
    BaseMessageQueue AbstractMessageQueue PublishCallback
llama_deploy.message_queues.rabbitmq
    RabbitMQMessageQueue RabbitMQMessageQueueConfig
llama_deploy.message_queues.redis
    RedisMessageQueue RedisMessageQueueConfig
llama_deploy.message_queues.simple
    SimpleMessageQueue SimpleMessageQueueConfig SimpleMessageQueueServer
llama_deploy.message_queues.simple.client
    SimpleMessageQueue
llama_deploy.message_queues.simple.config
    SimpleMessageQueueConfig
llama_deploy.message_queues.simple.server
    SimpleMessageQueueServer
llama_deploy.message_queues.solace
    SolaceMessageQueue SolaceMessageQueueConfig
llama_deploy.messages
    QueueMessage
llama_deploy.messages.base
    QueueMessage QueueMessageStats
llama_deploy.orchestrators
    BaseOrchestrator SimpleOrchestrator SimpleOrchestratorConfig
llama_deploy.orchestrators.base
    BaseOrchestrator
llama_deploy.orchestrators.simple
    SimpleOrchestrator SimpleOrchestratorConfig
llama_deploy.orchestrators.utils
    get_result_key get_stream_key
llama_deploy.services
    BaseService WorkflowService WorkflowServiceConfig
llama_deploy.services.base
    BaseService
llama_deploy.services.workflow
    WorkflowService WorkflowServiceConfig WorkflowState
llama_deploy.types
    ActionTypes CONTROL_PLANE_NAME ChatMessage DeploymentDefinition EventDefinition HumanResponse
    PydanticValidatedUrl ServiceDefinition SessionDefinition Status StatusEnum TaskDefinition
    TaskResult TaskStream ToolCall ToolCallBundle ToolCallResult generate_id
llama_deploy.types.apiserver
    DeploymentDefinition Status StatusEnum
llama_deploy.types.core
    ActionTypes CONTROL_PLANE_NAME EventDefinition HumanResponse PydanticValidatedUrl
    ServiceDefinition SessionDefinition TaskDefinition TaskResult TaskStream ToolCall ToolCallBundle
    ToolCallResult generate_id http_url_adapter
"""
"""The public names of each module of 0.5.1 and 0.6.1, without those of its own inside: the commands of the
command line, the handlers of its logging, the base classes of its client models, constants of its queues."""


def names_by_module() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in PUBLIC.split("\n"):
        if line.startswith("llama_deploy"):
            names = found[line] = []
        else:
            names += line.split()
    return found


NAMES = names_by_module()


@pytest.mark.parametrize("module", NAMES)
def test_the_names_of_a_module_can_be_imported(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize(
    "module", ["llama_deploy.services", "llama_deploy.types", "llama_deploy.message_queues"]
)
def test_a_name_that_never_was_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = importlib.import_module(module).Nothing
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{module}.nothing")


def test_importing_the_program_of_the_command_line_runs_nothing() -> None:
    program = "import sys; sys.argv = ['x', 'status']; import llama_deploy.cli.__main__; print('nothing')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "nothing\n"


def test_old_modules_are_loaded_only_if_they_are_asked_for() -> None:
    program = (
        "import sys, llama_deploy.client, llama_deploy.services, llama_deploy.message_queues\n"
        "print([name for name in sys.modules if name.startswith('llama_deploy.compat')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_extras_of_0_6_are_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {"kafka", "rabbitmq", "redis", "awssqs"} <= project["optional-dependencies"].keys()
