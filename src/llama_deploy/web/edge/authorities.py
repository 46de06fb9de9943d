"""Hosts and origins as HTTP headers and settings name them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_HOST_AND_PORT: Final = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE | re.ASCII
)
_SCHEME: Final = re.compile(rb"[a-z][a-z0-9+.-]*")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65535
_MAX_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class Authority:
    """A host and perhaps a port, from a `Host` header (RFC 9110, section 7.2)."""

    host: str
    """A name in lower case without a final dot, or an IP address in its canonical form without brackets."""
    port: int | None

    @property
    def is_ip_address(self) -> bool:
        """Whether the host is an IP address, which no DNS server can change."""
        return is_ip_address(self.host)


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a web page (RFC 6454)."""

    scheme: str
    authority: Authority

    def is_served_at(self, host: Authority) -> bool:
        """Whether a server that is reached over HTTP under `host` serves this origin.

        A `Host` without a port has the default port of the origin's scheme, because the scheme that the
        browser used is unknown behind a proxy that ends TLS.
        """
        default = _DEFAULT_PORTS.get(self.scheme)
        own, other = self.authority, host
        return (
            default is not None
            and own.host == other.host
            and (own.port or default) == (other.port or default)
        )

    def __str__(self) -> str:
        host = f"[{self.authority.host}]" if ":" in self.authority.host else self.authority.host
        port = self.authority.port
        suffix = "" if port is None or port == _DEFAULT_PORTS.get(self.scheme) else f":{port}"
        return f"{self.scheme}://{host}{suffix}"


def is_ip_address(host: str) -> bool:
    """Whether `host` is an IP address, without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_host_name(text: str) -> str | None:
    """Return a name or an IP address in its canonical form, None if `text` is neither."""
    name = text.strip().lower()
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return str(ipaddress.ip_address(bare)) if "%" not in bare else None
    except ValueError:
        name = name.removesuffix(".")
        valid = len(name) <= _MAX_NAME and all(map(_LABEL.fullmatch, name.split(".")))
        return name if valid else None


def parse_authority(value: bytes) -> Authority | None:
    """Return what a `Host` header says, None if it is malformed."""
    match = _HOST_AND_PORT.fullmatch(value.decode("latin-1"))
    if match is None:
        return None
    host = parse_host_name(match["host"])
    port = int(match["port"]) if match["port"] else None
    if host is None or (port is not None and port > _MAX_PORT):
        return None
    return Authority(host, port)


def parse_origin(value: bytes) -> Origin | None:
    """Return what an `Origin` header says, None if it is `null` or malformed."""
    scheme, separator, authority = value.lower().partition(b"://")
    parsed = parse_authority(authority)
    if not separator or parsed is None or not _SCHEME.fullmatch(scheme):
        return None
    return Origin(scheme.decode("ascii"), parsed)
