"""A workflow that a service hosts, with what all its runs share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import SecretStr
from workflows import Workflow

from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.journal_format import JournalFormat
from llama_deploy.services.run.step_guard import guard_steps
from llama_deploy.services.values.payloads import EventRegistry
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.instance_protocol import RunHeader
from llama_deploy.workflow_library import cache_steps, fingerprint, library_version, take_timeout


@dataclass(frozen=True, slots=True)
class HostedWorkflow:
    """A workflow whose runs have hosts, and how its values are read and written."""

    workflow: Workflow
    events: EventRegistry
    states: StateCodec
    journals: JournalFormat
    timeout: float | None
    """How many seconds a run may work. None: without limit."""

    @classmethod
    def prepare(
        cls,
        workflow: Workflow,
        *,
        extra: Sequence[type] = (),
        keys: Iterable[SecretStr] = (),
        strict: bool = False,
    ) -> HostedWorkflow:
        """Prepare a workflow object for hosting. Several services may prepare and share one.

        Args:
            workflow: The workflow. Its time limit is taken from it.
            extra: Further classes that its values may have.
            keys: Sign what is stored.
            strict: Whether a value of its state that cannot be written is an error.
        """
        guard_steps(workflow)
        cache_steps(workflow)
        host_runs(workflow)
        writing = Writing(workflow, extra=extra, keys=list(keys))
        states = StateCodec(workflow, writing, strict=strict)
        header = RunHeader(fingerprint=fingerprint(workflow), library_version=library_version())
        return cls(
            workflow=workflow,
            events=EventRegistry(workflow, extra),
            states=states,
            journals=JournalFormat(workflow, writing, states, header),
            timeout=take_timeout(workflow),
        )
