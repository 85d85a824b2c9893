"""STUN and TURN servers for WebRTC, with credentials that expire.

A TURN server and this one share a secret (coturn: `use-auth-secret`, `static-auth-secret`): the user name is the second
at which it expires, the password its HMAC-SHA1, in Base64 (the TURN REST API, draft-uberti-behave-turn-rest-00). No
client learns the secret.
"""

from __future__ import annotations

import base64
import hmac
import time

from .settings import Settings


def ice_servers(settings: Settings, now: float | None = None) -> list[dict[str, str]]:
    """`RTCIceServer`s: `urls`, and for TURN servers with a secret `username` and `credential`.

    Args:
        now: seconds since the epoch. Credentials are valid for the longest session from then on.
    """
    until = str(round((time.time() if now is None else now) + settings.total_limit))
    password = base64.b64encode(hmac.digest(settings.turn_secret.encode(), until.encode(), "sha1")).decode()
    credentials = {"username": until, "credential": password} if settings.turn_secret else {}
    return [
        {"urls": url, **(credentials if url.startswith(("turn:", "turns:")) else {})} for url in settings.ice_servers
    ]
