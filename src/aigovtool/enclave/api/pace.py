"""
How often somebody who shows no key may ask for what costs time. Pure: time is an argument.

Rule 1: each peer has a share, and all together have a limit: one peer takes at most its share.
Rule 2: an IPv6 peer is its /64 network, of which any one machine may have every address.
Rule 3: what is remembered is bounded; the peer that has been quiet for longest is forgotten first.
"""

from __future__ import annotations

import ipaddress

MAX_PEERS = 4096
PEER_SHARE = 0.5  # of the rate and of the burst of all together
IPV6_NETWORK_BITS = 64


class TokenBucket:
    """A rate with a burst. Pure: time is an argument, in seconds."""

    __slots__ = ("_at_s", "_burst", "_level", "_rate")

    def __init__(self, *, per_s: float, burst: float, now_s: float) -> None:
        self._rate = per_s
        self._burst = burst
        self._level = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one and return 0, or return after how many seconds there will be one."""
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0

    def put_back(self) -> None:
        """Give back one that was taken."""
        self._level = min(self._burst, self._level + 1)


class PeerPace:
    """The rate of all peers together, of which one peer gets at most `PEER_SHARE`."""

    __slots__ = ("_all", "_burst", "_peers", "_rate")

    def __init__(self, *, per_s: float, burst: int, now_s: float) -> None:
        self._all = TokenBucket(per_s=per_s, burst=burst, now_s=now_s)
        self._rate = per_s * PEER_SHARE
        self._burst = max(1.0, burst * PEER_SHARE)
        self._peers: dict[str, TokenBucket] = {}

    def take(self, host: str, now_s: float) -> float:
        """Take one for the peer at address *host* and return 0, or return how long it must wait."""
        peer = network_of(host)
        bucket = self._peers.pop(peer, None)
        if bucket is None:
            bucket = TokenBucket(per_s=self._rate, burst=self._burst, now_s=now_s)
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = bucket  # the last to ask is the last to be forgotten
        if (after_s := bucket.take(now_s)) > 0:
            return after_s
        if (after_s := self._all.take(now_s)) > 0:
            bucket.put_back()  # it was not served
        return after_s


def network_of(host: str) -> str:
    """Return the peer behind an address (Rule 2); what is no address is a peer by its name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_NETWORK_BITS), strict=False))
