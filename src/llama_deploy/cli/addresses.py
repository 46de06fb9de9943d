"""Why `llamactl serve` cannot listen on its addresses, and which option to change."""

from __future__ import annotations

import errno

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.place import Place
from llama_deploy.errors import BindError
from llama_deploy.web.loopback import is_loopback


def check_ports(place: Place) -> None:
    """Check that the parts do not listen on one port.

    Raises:
        CommandError: They do.
    """
    if place.queue is None and place.port == place.queue_port != 0:
        raise CommandError(
            f"--port and --queue-port are both {place.port}, but control plane and queue need a port each",
            hint="pass a different --queue-port; 0 selects a free port",
        )


def check_remote(host: str, *, what: str, allowed: bool, closing: str = "") -> None:
    """Check that other machines cannot reach an address, unless they may.

    Args:
        host: The address.
        what: What they could do there, for the error.
        allowed: Whether they may.
        closing: The option that admits only callers with a key, for the hint.

    Raises:
        CommandError: They can, and may not.
    """
    if not allowed and not is_loopback(host):
        raise CommandError(
            f"other machines can reach {host} and {what}",
            hint=f"leave out --host to listen on 127.0.0.1, {closing}or pass --allow-remote if you trust the"
            " network",
        )


def explain_bind_error(exc: BindError, place: Place) -> CommandError:
    """Return an error that names the option to change."""
    cause = exc.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    option = _option_of(exc.port, place)
    address = f"{exc.host}:{exc.port}"
    change = f"pass a different {option}; 0 selects a free port"
    if number == errno.EADDRINUSE:
        problem = f"{address} ({option}): another process uses this port"
        hint = f"stop that process, or {change}"
        if place.store is None:
            hint += ". A second `llamactl serve` also needs a different --data-dir"
    elif number == errno.EACCES:
        problem = f"{address} ({option}): permission denied"
        hint = f"{change}. Ports below 1024 often need the rights of root"
    else:
        problem = f"{address}: {cause.strerror if isinstance(cause, OSError) else exc}"
        hint = "pass a --host that is an address of this machine"
    return CommandError(f"cannot listen on {problem}", hint=hint, exit_code=ExitCode.FAILED)


def _option_of(port: int | None, place: Place) -> str:
    """Return the option that sets a port."""
    if port == place.port:
        return "--port"
    return "--queue-port" if place.queue is None else "--queue"
