"""The hooks of a client: tracing, those of installed packages, and those of the program."""

from __future__ import annotations

from collections.abc import Sequence

from llama_deploy.interceptors import ClientInterceptor, Hooks, SubmitCall, client_interceptors, hooks_of
from llama_deploy.tracing import is_active


def submit_hooks(given: Sequence[ClientInterceptor]) -> Hooks[SubmitCall]:
    """Return the hooks around a submission, the outermost first."""
    found = [*client_interceptors(), *given]
    if is_active():
        from llama_deploy.client.client_tracing import ClientTracing  # noqa: PLC0415 - see `tracing`

        found.insert(0, ClientTracing())
    return hooks_of(found, ClientInterceptor, "submit")
