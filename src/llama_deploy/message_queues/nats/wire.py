"""Names of subjects and consumers, and the acknowledgement messages of JetStream. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final
from urllib.parse import quote

from llama_deploy.message_queues.settlement import SettleAction

_MAX_SECONDS: Final = 7 * 24 * 3600.0
_SAME_SECONDS: Final = 0.001


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


def payload_of(action: SettleAction, seconds: float, *, usual: float) -> bytes:
    """Return the acknowledgement that settles a delivery of a group with the visibility timeout `usual`."""
    if action is SettleAction.ACK:
        return b"+ACK"
    if action is SettleAction.REJECT:
        return b"+TERM"
    # In progress means one more visibility timeout; any other time is a redelivery that is put off.
    if action is SettleAction.EXTEND and abs(seconds - usual) < _SAME_SECONDS:
        return b"+WPI"
    return b'-NAK {"delay": %d}' % nanoseconds(seconds) if seconds > 0 else b"-NAK"
