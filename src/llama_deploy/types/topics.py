"""The names of the topics on the queue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Final

from pydantic import AfterValidator

CONTROL_PLANE: Final = "control_plane"
"""The type of messages to the control plane. Messages to a service have the service name as their type."""
MAX_PART_LENGTH: Final = 120
"""How many characters of a topic a service name takes."""
MAX_NAMESPACE_LENGTH: Final = 64
"""How many the namespace takes. With a service name and an instance, a topic stays below the smallest limit
of the brokers, which is the 229 of RabbitMQ with the default exchange."""

_PLAIN: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.\-]{{0,{MAX_PART_LENGTH - 1}}}")
_NAMESPACE: Final = re.compile(rf"[A-Za-z0-9_.\-]{{1,{MAX_NAMESPACE_LENGTH}}}")
_SUSPECTS: Final = "_suspects"
"""The last part of the topics for suspects. Where it would be that of another topic, this one is written
differently."""
_SUFFIXES_OF_OTHERS: Final = (".dead_letters", f".{_SUSPECTS}")
_ESCAPED: Final = re.compile(rb"[^A-Za-z0-9]")
_DIGEST_BYTES: Final = 16
_MAX_INSTANCE_LENGTH: Final = 36


def check_namespace(namespace: str) -> str:
    """Return a topic namespace if it can be one.

    Raises:
        ValueError: It is empty, too long, or has characters that not every broker accepts.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"{namespace!r} cannot be a topic namespace: use 1 to {MAX_NAMESPACE_LENGTH} letters, digits, _, "
            "- and ."
        )
    return namespace


TopicNamespace = Annotated[str, AfterValidator(check_namespace)]
"""The first part of every topic's name."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one namespace."""

    namespace: str

    @property
    def control_plane(self) -> str:
        """The topic for the reports of instances."""
        return f"{self.namespace}.{CONTROL_PLANE}"

    def work(self, service_name: str) -> str:
        """The topic for the attempts of a service, which its instances share."""
        return f"{self.namespace}.{topic_part(service_name)}"

    def suspects(self, service_name: str) -> str:
        """The topic for the attempts of a service that run alone in their process."""
        return f"{self.work(service_name)}.{_SUSPECTS}"

    def instance(self, service_name: str, instance_id: str) -> str:
        """The topic for events and cancellations of one instance."""
        return f"{self.namespace}.{topic_part(service_name)}.{_instance_part(instance_id)}"


def _instance_part(instance_id: str) -> str:
    """Return an instance's id as topics have it: a digest if it is long or has other characters."""
    is_plain = _PLAIN.fullmatch(instance_id) and not instance_id.endswith(_SUFFIXES_OF_OTHERS)
    if len(instance_id) <= _MAX_INSTANCE_LENGTH and is_plain:
        return instance_id
    return f"_{blake2b(instance_id.encode(), digest_size=_DIGEST_BYTES).hexdigest()}"


def topic_part(service_name: str) -> str:
    """Return a service name in the form that it has in topics.

    Every broker accepts it: it has letters, digits, `_`, `-` and `.` only. A name of these, which begins with
    a letter or a digit, stays as it is. Of any other, each other byte becomes `_` and two digits, after a
    leading `_`. Names that are too long for that end in a digest. Different names have different forms.
    """
    if _PLAIN.fullmatch(service_name) and not service_name.endswith(_SUFFIXES_OF_OTHERS):
        return service_name
    raw = service_name.encode()
    escaped = "_" + _ESCAPED.sub(lambda found: b"_%02x" % found[0][0], raw).decode()
    if len(escaped) <= MAX_PART_LENGTH:
        return escaped
    digest = blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()
    # Two `_` are nowhere else but at the beginning.
    return f"{escaped[: MAX_PART_LENGTH - len(digest) - 2]}__{digest}"
