"""Who is named in the audit log for commands that open a state store themselves."""

from __future__ import annotations

import getpass

from llama_deploy.types.audit import Actor
from llama_deploy.types.keys import DEFAULT_TENANT


def actor_on_this_machine() -> Actor:
    """Return the user of this process. Such commands are recorded whatever the control plane records."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "an unnamed user"
    return Actor(subject=f"llamactl of {user}", tenant=DEFAULT_TENANT)
