"""Identifiers."""

from __future__ import annotations

import uuid


def generate_id() -> str:
    """Return a new random identifier (a UUID version 4 in its usual text form)."""
    return str(uuid.uuid4())
