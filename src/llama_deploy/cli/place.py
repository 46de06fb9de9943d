"""Where `llamactl serve` listens and stores its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses to listen on, the message queue and the state store."""

    data_dir: Path
    host: str
    port: int
    queue_port: int
    allow_remote: bool
    """Whether `host` may be an address that other machines can reach."""
    queue: str | None = field(default=None, repr=False)
    """The URL of a message broker. None: the built-in queue."""
    store: str | None = field(default=None, repr=False)
    """The URI of a state store. None: a SQLite file in `data_dir`."""

    @property
    def store_uri(self) -> str:
        """The URI of the state store, with the default filled in."""
        return self.store or f"sqlite:///{self.data_dir.resolve() / 'control_plane.db'}"

    @property
    def data(self) -> str:
        """Where the state is stored, without a password."""
        if self.store is None:
            return str(self.data_dir)
        return make_url(self.store).set(query={}).render_as_string(hide_password=True)
