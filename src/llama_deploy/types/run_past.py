"""What the writes of a run's journal have replaced, from which a fork goes back."""

from __future__ import annotations

import zlib
from typing import Final, Self

from pydantic import BaseModel

from llama_deploy.types.exact_values import Count
from llama_deploy.types.state_changes import StateChange

MAX_PAST_BYTES: Final = 256 * 1024
"""How much is kept of the past of one run. Of more, the oldest is dropped."""


class ReplacedJournal(BaseModel):
    """What a snapshot has replaced: the journal before it."""

    first: Count
    """The number of the first entry."""
    entries: list[str]
    snapshot: str | None = None
    """The snapshot before these entries. None: they begin with the run."""
    fingerprint: str
    library_version: str
    needs: str | None = None

    def pack(self) -> bytes:
        """Return it as compressed JSON: the entries of a run repeat each other."""
        return zlib.compress(self.model_dump_json().encode(errors="surrogatepass"))

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return what `pack` has packed.

        Raises:
            ValueError: It is something else.
        """
        try:
            text = zlib.decompress(packed)
        except zlib.error as exc:
            raise ValueError(f"not a packed journal: {exc}") from exc
        return cls.model_validate_json(text)


class PastWrite(BaseModel):
    """What one write of a run's journal has replaced."""

    seq: Count
    """How many entries preceded the write."""
    snapshots: Count
    """How many snapshots did."""
    state_change: StateChange | None = None
    """How its state leads back to the one before. None: it left the state as it was, or this is not kept."""
    replaced: ReplacedJournal | None = None
    """None: the write had no snapshot, or this is not kept."""

    @property
    def writes_before(self) -> int:
        """See `RunPoint.writes_before`."""
        return self.seq + self.snapshots
