"""The workflows that a command hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.logs import CommandLogging
from llama_deploy.cli.serving.targets import load_workflows, parse_targets
from llama_deploy.deploy import HostedWorkflow
from llama_deploy.services import WorkflowServiceConfig
from llama_deploy.web.server_tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Program:
    """The workflows that the command line names, and how they are hosted."""

    targets: Sequence[str]
    logs: CommandLogging
    max_concurrent_tasks: int | None
    """For each service. None: from the environment or the default."""
    allowed_types: Sequence[str] | None
    """See `WorkflowServiceConfig.allowed_types`. None: from the environment or the default."""
    tls: TlsFiles | None = None
    """The certificate of the servers of the services. None: from the environment, or none."""

    def check(self) -> None:
        """Check what can be checked before the workflows are imported.

        Raises:
            CommandError: A target has the wrong form, or an environment variable is not valid.
        """
        parse_targets(self.targets)
        with settings_of(WorkflowServiceConfig):
            WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="any")

    def load(self) -> list[HostedWorkflow]:
        """Import the workflows.

        Raises:
            CommandError: A workflow was not found, or an environment variable is not valid.
        """
        with self.logs.left_to_the_application():
            workflows = load_workflows(self.targets)
        with settings_of(WorkflowServiceConfig):
            return [
                HostedWorkflow.named(
                    name,
                    workflow,
                    max_concurrent_tasks=self.max_concurrent_tasks,
                    allowed_types=self.allowed_types,
                    tls=self.tls,
                )
                for name, workflow in workflows.items()
            ]


def drain_seconds(hosted: Sequence[HostedWorkflow]) -> float:
    """Return how long running tasks of these workflows may take to end."""
    return max((each.config.drain_timeout for each in hosted), default=0.0)
