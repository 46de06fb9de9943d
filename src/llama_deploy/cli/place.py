"""Where a process of `llamactl serve` listens, and where it keeps what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen, and where queue and state are."""

    data_dir: Path
    host: str
    port: int
    queue_port: int
    allow_remote: bool
    """Whether `host` may be an address that other machines reach."""
    queue: str | None = field(default=None, repr=False)
    """The URL of a broker. None: a simple queue in this process."""
    store: str | None = field(default=None, repr=False)
    """The address of a state store. None: a SQLite file in `data_dir`."""

    @property
    def store_uri(self) -> str:
        """The address of the state store, the default filled in."""
        return self.store or f"sqlite:///{self.data_dir.resolve() / 'control_plane.db'}"

    @property
    def data(self) -> str:
        """Where the state is kept, for people to read: without a password."""
        if self.store is None:
            return str(self.data_dir)
        return make_url(self.store).set(query={}).render_as_string(hide_password=True)
