"""Events that are for one waiting step only.

The library gives an event to every step that waits for its class. An event with an address is for one of
them: each waiting step also requires that the address of an event is its own, or that it has none. The
address is an undeclared field of the event, so it is in the journal of the run, too.
"""

from __future__ import annotations

from collections.abc import ItemsView
from hashlib import blake2b
from typing import Any, Final

from workflows.events import Event

from llama_deploy.workflow_library.waiter_ids import stable_waiter_id

_FIELD: Final = "llama_deploy_question"
"""The field that has the address."""


def address_of_wait(step: str, waiter_id: str) -> str:
    """Return the address of a step that waits, the same in each process."""
    text = f"{step}\n{stable_waiter_id(waiter_id)[0]}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def address_event(event: Event, address: str) -> None:
    """Let only the step with this address take an event."""
    setattr(event, _FIELD, address)


def address_of(event: Event) -> str | None:
    """Return the address of an event. None: it is for every step that waits for it."""
    return getattr(event, _FIELD, None)


class AddressedRequirements(dict[str, Any]):
    """The requirements of a step that waits, which also compare the address."""

    def __init__(self, requirements: dict[str, Any], address: str) -> None:
        super().__init__(requirements)
        self._all = {**requirements, _FIELD: _OwnOrNone(address)}

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return what the library compares."""
        return self._all.items()


class _OwnOrNone:
    """Equals an address, and None."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __eq__(self, other: object) -> bool:
        return other is None or other == self._address

    def __hash__(self) -> int:
        return hash(self._address)
