"""Where `llamactl serve` listens and stores its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL

from llama_deploy.cli.options import Auth
from llama_deploy.web.server_tls import TlsFiles
from llama_deploy.web.shown_url import shown_url


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses to listen on, the message queue and the state store."""

    data_dir: Path
    host: str
    port: int
    queue_port: int
    allow_remote: bool
    """Whether `host` may be such an address without authentication."""
    auth: Auth = Auth.OFF
    """Who may use the control plane and the queue."""
    queue: str | None = field(default=None, repr=False)
    """The URL of a message broker. None: the built-in queue."""
    store: str | None = field(default=None, repr=False)
    """The URI of a state store. None: a SQLite file in `data_dir`."""
    tls: TlsFiles | None = None
    """The certificate of control plane and queue. None: they speak plain HTTP."""

    @property
    def may_be_remote(self) -> bool:
        """Whether `host` may be an address that other machines can reach."""
        return self.allow_remote or self.auth is not Auth.OFF

    @property
    def store_uri(self) -> str:
        """The URI of the state store, with the default filled in."""
        return self.store or _sqlite_uri(self.data_dir / "control_plane.db")

    @property
    def public_store_uri(self) -> str:
        """The URI of the state store without secrets. The path of a SQLite file is absolute."""
        shown, _, _ = shown_url(self.store_uri).partition("?")
        scheme, _, path = shown.partition(":///")
        if scheme != "sqlite" or path == ":memory:":
            return shown
        return _sqlite_uri(Path(unquote(path)))

    @property
    def data(self) -> str:
        """Where the state is stored, for people: the directory, or the URI of the state store."""
        return str(self.data_dir) if self.store is None else self.public_store_uri


def _sqlite_uri(path: Path) -> str:
    # Not put together by hand: the path may contain characters that have a meaning in a URL.
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()
