"""How many keys that are not valid one address may send, and which were refused before."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from llama_deploy.errors import OverloadedError

BURST: Final = 20
"""How many failures are free."""
SECONDS_PER_FAILURE: Final = 2.0
"""After how many seconds a further one is."""
MAX_ADDRESSES: Final = 10_000
"""How many addresses are remembered; of more, those are forgotten that have failed longest ago."""

REFUSED_SECONDS: Final = 10.0
"""How long a refused key is remembered."""
MAX_REFUSED_KEYS: Final = 10_000


class FailureLimit:
    """Counts failures by address, and forgets them as time passes.

    Args:
        clock: Returns seconds that only grow.
        burst: How many failures of one address are free.
        seconds: After how many seconds a further one is.
    """

    def __init__(
        self, clock: Callable[[], float], *, burst: int = BURST, seconds: float = SECONDS_PER_FAILURE
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._seconds = seconds
        self._forgotten_at: OrderedDict[str, float] = OrderedDict()
        """When the last failure of an address is forgotten: each takes `seconds`."""

    def reserve(self, address: str) -> None:
        """Count a failure before it happens, if the address may fail once more; see `take_back`.

        So what is sent at the same time counts together.

        Raises:
            OverloadedError: It may not, for `retry_after` seconds.
        """
        waits = self._forgotten_at.get(_network(address), 0.0) - self._clock()
        excess = waits - (self._burst - 1) * self._seconds
        if excess > 0:
            raise OverloadedError(
                f"too many keys that are not valid came from this address; retry in {math.ceil(excess)} s",
                retry_after=excess,
            )
        self.note(address)

    def take_back(self, address: str) -> None:
        """Forget one failure that was reserved and did not happen."""
        network = _network(address)
        if network in self._forgotten_at:
            self._forgotten_at[network] -= self._seconds

    def note(self, address: str) -> None:
        """Count a failure."""
        network, now = _network(address), self._clock()
        begin = max(now, self._forgotten_at.pop(network, now))
        longest = now + self._burst * self._seconds
        self._forgotten_at[network] = min(begin + self._seconds, longest)
        while len(self._forgotten_at) > MAX_ADDRESSES:
            self._forgotten_at.popitem(last=False)


class RefusedKeys:
    """The keys that were refused a moment ago. A program that repeats one is refused without a look-up.

    It does not count as a further failure either: a worker whose key was revoked would use up the limit of
    its machine.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def has(self, digest: bytes) -> bool:
        """Whether the key with this hash was refused a moment ago."""
        until = self._until.get(digest)
        return until is not None and self._clock() < until

    def add(self, digest: bytes) -> None:
        """Remember that a key was refused."""
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + REFUSED_SECONDS
        while len(self._until) > MAX_REFUSED_KEYS:
            self._until.popitem(last=False)


def _network(address: str) -> str:
    """Return the addresses that one client may choose from: an IPv4 address, 64 bits of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:  # of a socket for both protocols
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
