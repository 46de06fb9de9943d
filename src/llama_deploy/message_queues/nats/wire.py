"""Names of subjects and consumers, and the acknowledgement messages of JetStream. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final
from urllib.parse import quote

_MAX_SECONDS: Final = 7 * 24 * 3600.0
ACK: Final = b"+ACK"
NAK: Final = b"-NAK"
PROGRESS: Final = b"+WPI"
TERM: Final = b"+TERM"


def subject_of(stream: str, topic: str) -> str:
    """Return the subject of a topic: what stands between dots as tokens, quoted where NATS needs it."""
    return ".".join([stream, *(quote(part, safe="") or "%" for part in topic.split("."))])


def consumer_name(topic: str, group: str) -> str:
    """Return a readable name that is unique to the group."""
    digest = hashlib.sha256(json.dumps([topic, group]).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', f'{topic}-{group}')[:100]}-{digest[:16]}"


def nanoseconds(seconds: float) -> int:
    """Return a duration in nanoseconds, at most a week."""
    return int(min(max(seconds, 0.0), _MAX_SECONDS) * 1e9)


def nak(delay: float) -> bytes:
    """Return the payload that returns a message, not before `delay` seconds."""
    return b'%s {"delay": %d}' % (NAK, nanoseconds(delay)) if delay > 0 else NAK
