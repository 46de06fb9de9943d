"""Run the parts of a system, in separate processes or in one."""

from __future__ import annotations

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.deploy.core import deploy_core
from llama_deploy.deploy.stack import HostedWorkflow, LocalStack
from llama_deploy.deploy.workflow import deploy_workflow, run_workflow
from llama_deploy.renamed import old_names

__all__ = ["HostedWorkflow", "LocalStack", "deploy_core", "deploy_workflow", "run_workflow"]

__getattr__ = old_names(__name__, __path__)
