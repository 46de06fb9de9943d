"""Parses the URLs of brokers: where the broker is, and credentials, which are secret.

A password may contain any character, percent-encoded or not (except a comma where several hosts are allowed).
So the credentials are split off first: they end at the last `@`. Errors never repeat any part of a URL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """A URL without credentials."""

    scheme: str
    """Empty where the URL has none."""
    netloc: str
    """Host and port, as they were written."""
    host: str
    """Without brackets; empty where the URL names none."""
    port: int | None
    path: str
    query: Mapping[str, str]

    @property
    def text(self) -> str:
        """The URL."""
        begin = f"{self.scheme}://" if self.scheme else ""
        query = f"?{urlencode(self.query, safe='/')}" if self.query else ""
        return f"{begin}{self.netloc}{self.path}{query}"


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed URL."""

    addresses: tuple[Address, ...]
    """At least one."""
    username: str | None = field(default=None, repr=False)
    """None: the URL has none."""
    password: str | None = field(default=None, repr=False)
    """None: the URL has none. Empty: it has an empty one."""

    @property
    def address(self) -> Address:
        """The first address."""
        return self.addresses[0]

    @property
    def credentials(self) -> dict[str, str]:
        """Those of `username` and `password` that the URL has."""
        found = {"username": self.username, "password": self.password}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class UrlForm:
    """The form of a backend's URLs."""

    expected: str
    """The form in words, for the error about a URL of another one."""
    schemes: Collection[str]
    """An empty one allows a URL without a scheme."""
    arguments: Collection[str] = ()
    """The parameters that the query may have."""
    needs_host: bool = False
    """Whether each URL must name a host."""
    has_several: bool = False
    """Whether several URLs may be given, separated by commas; only the first one needs scheme and
    credentials."""

    def parse(self, url: str) -> BrokerUrl:
        """Parse `url`.

        Raises:
            ValueError: It has another form. The text repeats nothing of it.
        """
        texts = [text.strip() for text in (url.split(",") if self.has_several else [url])]
        scheme = _split_scheme(texts[0])[0]
        addresses, people = [], []
        for text in texts:
            own, rest = _split_scheme(text)
            userinfo, at, place = rest.rpartition("@")
            people.append(userinfo if at else None)
            addresses.append(self._address(own or scheme, place))
        if any(person not in (people[0], None) for person in people):
            raise self.invalid("write the same credentials for each host, or for the first one only")
        name, colon, password = (people[0] or "").partition(":")
        if any(mark in name for mark in "/?#"):
            # As in redis://host?password=a@b, where the host is ambiguous.
            raise self.invalid("percent-encode special characters in the user name, and any @ after the host")
        return BrokerUrl(tuple(addresses), unquote(name) or None, unquote(password) if colon else None)

    def invalid(self, detail: str = "") -> ValueError:
        """Return the error for a URL of another form."""
        return ValueError(f"url: {self.expected}{detail and '; '}{detail}")

    def _address(self, scheme: str, place: str) -> Address:
        """Return the address of a URL that has lost scheme and credentials."""
        if scheme not in self.schemes:
            raise self.invalid()
        try:
            parts = urlsplit(f"//{place}")
            host, port = parts.hostname or "", parts.port
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
        except ValueError:
            raise self.invalid("a port is a number from 1 to 65535") from None  # which would show the URL
        if self.needs_host and not host:
            raise self.invalid()
        if port == 0 or parts.netloc.endswith(":") or (port is not None and not host):
            raise self.invalid("a port is a number from 1 to 65535 and follows a host")
        if parts.fragment or not query.keys() <= set(self.arguments):
            known = ", ".join(sorted(self.arguments))
            raise self.invalid(
                f"the query may have {known or 'no parameters'}; percent-encode ? and # in a password"
            )
        return Address(scheme, parts.netloc, host, port, parts.path, query)


def bracketed(host: str) -> str:
    """Return a host as a URL has it."""
    return f"[{host}]" if ":" in host else host


def _split_scheme(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    return (scheme.lower(), rest) if separator else ("", url)
