"""The state of a run in memory, as the library keeps it, made in less time.

The library compares the storage of each state with a protocol, whose attributes Python collects each time.
That takes as long as a short step.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, Final

from pydantic import BaseModel
from workflows.context import state_store
from workflows.context.state_store import DictState, InMemoryStateStore
from workflows.plugins import basic
from workflows.plugins.basic import BasicRuntime

from llama_deploy.workflow_library.versions import private

_STORAGE: Final = private(state_store, "_InMemoryStateStorage")
_RECORD: Final = private(state_store, "_live_record")
_SAME: Final = dict(vars(InMemoryStateStore(DictState())))
"""The attributes of a store. All but those that hold the state are the same for each."""
_OF_A_RUN: Final = frozenset({"_memory_storage", "_storage", "state_type"})
IS_KNOWN: Final = _SAME.keys() == _OF_A_RUN | {"_durable", "_serializer", "_pending_seed"}
"""Whether the stores of the installed version are those that this module makes."""


class RunStore(InMemoryStateStore[Any]):
    """A store that is made from the attributes of another one."""

    def __init__(self, initial_state: BaseModel) -> None:
        if not IS_KNOWN:
            super().__init__(initial_state)
            return
        attributes = vars(self)
        attributes.update(_SAME)
        attributes["_memory_storage"] = attributes["_storage"] = _STORAGE(_RECORD(initial_state))
        attributes["state_type"] = type(initial_state)


# The library's code itself, with another class bound to this name; its module stays unchanged.
start_run: Final = FunctionType(
    BasicRuntime.run_workflow.__code__,
    {**vars(basic), InMemoryStateStore.__name__: RunStore},
    BasicRuntime.run_workflow.__name__,
    BasicRuntime.run_workflow.__defaults__,
)
"""`BasicRuntime.run_workflow`, whose runs have such stores."""
