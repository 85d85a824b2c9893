"""What of a client's offer is believed: one section each of sound, picture and data, and few ICE candidates.

The server sends packets to every candidate, so a client could make it probe the operator's own network. Only those
candidates remain whose addresses the client could have, or that the operator allows.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence

from ...errors import ProtocolError

MOST_CANDIDATES = 20
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind NAT64, private addresses too
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def checked(offer: str, client: str, networks: Sequence[Network] = ()) -> str:
    """The offer with the candidates that may be tried.

    Args:
        client: address that the offer came from. networks: to which any client may direct the server.

    Raises:
        ProtocolError: sections that the server does not serve.
    """
    lines = offer.splitlines()  # as aiortc does: at more than line feeds
    kinds = Counter(line[2:].split(" ")[0] for line in lines if line.startswith("m="))
    if surplus := [kind for kind, count in kinds.items() if count > 1 or kind not in ("audio", "video", "application")]:
        raise ProtocolError(
            f"an offer with {', '.join(f'{kinds[kind]} x {kind[:20]}' for kind in surplus)}",
            expected="at most one section each of audio, video and application (data)",
        )
    kept, count = [], 0
    for line in lines:
        if line.startswith(("a=candidate:", "a=remote-candidates")):
            count += (allowed := count < MOST_CANDIDATES and _may_be_tried(line, client, networks))
            if not allowed:
                continue
        kept.append(line)
    return "".join(f"{line}\r\n" for line in kept)


def _may_be_tried(line: str, client: str, networks: Sequence[Network]) -> bool:
    """Whether a candidate, "a=candidate:ID COMPONENT PROTOCOL PRIORITY ADDRESS PORT ...", may be the client's own."""
    parts = line.split()
    name = parts[4] if len(parts) > 5 else ""
    near = _is_near(client)
    if name.endswith(".local"):  # a name that a browser gives its address, of use on one network only
        return near
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_multicast or address in _TRANSLATED:
        return False
    if name == client or any(address in network for network in networks):
        return True
    if address.is_loopback:
        return near and ipaddress.ip_address(client).is_loopback
    return address.is_global or (near and address.is_private and not address.is_link_local)


def _is_near(client: str) -> bool:
    """Whether the client is on the server's own network, or this machine."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    return address.is_private
