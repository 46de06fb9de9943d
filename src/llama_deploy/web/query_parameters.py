"""Parameters of a query that a route does not know: refused, because they would change nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from llama_deploy.errors import InvalidRequestError


def check_known(given: Iterable[str], known: Collection[str]) -> None:
    """Check that a query has only parameters that its route knows.

    Raises:
        InvalidRequestError: There is another one. The text lists those that are known.
    """
    if unknown := sorted(set(given) - set(known)):
        shown = ", ".join(repr(name[:40]) for name in unknown[:3])
        raise InvalidRequestError(
            f"unknown query parameter{'s' if len(unknown) > 1 else ''} {shown}; known: {', '.join(known)}"
        )
