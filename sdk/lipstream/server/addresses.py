"""What limits by address take as one client."""

from __future__ import annotations

import ipaddress
from functools import lru_cache


@lru_cache(1024)  # those of all open connections are compared for each new one
def network_of(address: str) -> str:
    """An IPv4 address; of an IPv6 address its network of 64 bits, in which every client can have any address.

    An IPv4 address in the form of IPv6 (``::ffff:192.0.2.1``) is that IPv4 address; what is no address stays as it is.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
