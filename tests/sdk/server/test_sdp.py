"""What of a WebRTC client's offer is believed."""

from __future__ import annotations

import ipaddress

import pytest
from lipstream.errors import ProtocolError
from lipstream.server.transports.sdp import MOST_CANDIDATES, checked


def offer(*addresses: str, sections: tuple[str, ...] = ("audio", "video", "application")) -> str:
    lines = ["v=0", "s=-"]
    for kind in sections:
        lines += [f"m={kind} 9 UDP/TLS/RTP/SAVPF 96", "c=IN IP4 0.0.0.0"]
        lines += [f"a=candidate:{i} 1 udp 2122 {address} 5000 typ host" for i, address in enumerate(addresses)]
    return "\r\n".join([*lines, ""])


def tried(text: str) -> list[str]:
    return [line.split(" ")[4] for line in text.splitlines() if line.startswith("a=candidate:")]


@pytest.mark.parametrize(
    ("client", "address", "is_tried"),
    [
        ("8.8.4.4", "127.0.0.1", False),  # the server's own ports
        ("8.8.4.4", "::1", False),
        ("8.8.4.4", "10.0.0.5", False),  # the operator's network
        ("8.8.4.4", "169.254.169.254", False),  # a cloud's metadata
        ("8.8.4.4", "fd00::1", False),
        ("8.8.4.4", "8.8.4.4", True),
        ("8.8.4.4", "8.8.8.8", True),
        ("8.8.4.4", "abc.local", False),
        ("8.8.4.4", "internal.example", False),  # a name would be looked up
        ("10.0.0.9", "10.0.0.9", True),
        ("10.0.0.9", "192.168.1.2", True),
        ("10.0.0.9", "127.0.0.1", False),
        ("10.0.0.9", "169.254.169.254", False),
        ("10.0.0.9", "abc.local", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "abc.local", True),
        ("", "10.0.0.5", False),
    ],
)
def test_only_addresses_that_may_be_the_clients_are_tried(client: str, address: str, is_tried: bool) -> None:
    assert tried(checked(offer(address), client)) == [address] * 3 * is_tried


def test_the_operator_may_allow_networks() -> None:
    networks = [ipaddress.ip_network("10.1.0.0/16")]
    assert tried(checked(offer("10.1.2.3", "10.2.2.3"), "8.8.4.4", networks)) == ["10.1.2.3"] * 3


def test_few_candidates_are_tried() -> None:
    text = checked(offer(*(f"8.8.{i}.8" for i in range(100))), "8.8.4.4")
    assert len(tried(text)) == MOST_CANDIDATES


@pytest.mark.parametrize("sections", [("audio", "video", "video"), ("audio", "audio"), ("audio", "text")])
def test_surplus_sections_are_refused(sections: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError, match="an offer with"):
        checked(offer(sections=sections), "127.0.0.1")


def test_all_else_stays() -> None:
    text = offer("127.0.0.1")
    assert checked(text, "127.0.0.1") == text


@pytest.mark.parametrize(
    "line",
    [
        "a=candidate:1 1 udp\t5\t10.0.0.1\t53\ttyp\thost x 8.8.8.8 z",
        "a=x:1\ra=candidate:1 1 udp 5 10.0.0.1 53 typ host",
        "a=x:1\x1ca=candidate:1 1 udp 5 10.0.0.1 53 typ host",
        "a=x:1\u2028a=candidate:1 1 udp 5 10.0.0.1 53 typ host",
        "a=candidate:1 1 udp 5 224.0.0.251 5353 typ host",
        "a=candidate:1 1 udp 5 ff02::1 5353 typ host",
        "a=candidate:1 1 udp 5 64:ff9b::10.0.0.1 53 typ host",
    ],
)
def test_aiortc_finds_no_candidate_that_was_not_seen_here(line: str) -> None:
    """It separates lines and words at more characters than SDP does."""
    description = pytest.importorskip("aiortc.sdp", reason="needs the extra [webrtc]").SessionDescription
    begin = ("v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "m=audio 9 UDP/TLS/RTP/SAVPF 0", "c=IN IP4 0.0.0.0")
    offer = "\r\n".join([*begin, line, ""])
    assert not [c.ip for media in description.parse(checked(offer, "8.8.4.4")).media for c in media.ice_candidates]


def test_aiortc_finds_no_section_that_was_not_seen_here() -> None:
    with pytest.raises(ProtocolError):
        checked("v=0\r\nm=audio 9 X 0\r\na=x:1\rm=audio 9 X 0\r\n", "8.8.4.4")
