"""The control plane in the process of a supervisor, as its children need it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServedControlPlane:
    """How the children of a supervisor reach the control plane in its process."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    """The key that they need. None: none."""
    certificates: tuple[str, ...] = ()
    """The paths of its certificate, and of that of its queue, if they speak TLS."""
