"""What only programs written for llama_deploy 0.5 and 0.6 need: old clients, modules and names.

Delete this package, `llama_deploy.renamed` with the lines that call it, and the two names in `llama_deploy`,
to end that support. `llama_deploy.types.core` is the other place for compatibility: programs import the wire
models from that module.
"""

from __future__ import annotations

from llama_deploy.compat.async_client import AsyncLlamaDeployClient, AsyncSessionClient
from llama_deploy.compat.sync_client import LlamaDeployClient, SessionClient

__all__ = ["AsyncLlamaDeployClient", "AsyncSessionClient", "LlamaDeployClient", "SessionClient"]
