"""Two network namespaces joined by a link that delays and loses packets: a TUN device in each, and a relay process.

Whole IP packets are delayed and lost, so the kernel's TCP and UDP do about it what they do on a real
network. `tc netem` does the same, but many kernels lack it; this needs root and /dev/net/tun alone.

python -m benchmarks.lossy_network NEAR FAR DELAY JITTER LOSS    the relay, between two file descriptors
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lipstream.errors import ConfigError

from .common import ROOT

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""Addresses of the two ends."""
_SET_INTERFACE, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_NETWORK = 0x40000000
_LONGEST = 65_536


@dataclass
class LossyNetwork:
    """Attributes: far: put in front of a command that runs at the far end. packets: sent and lost, once closed."""

    far: list[str]
    packets: dict[str, int] = field(default_factory=dict)


def available() -> bool:
    """Whether `lossy_network` can be used here."""
    return sys.platform == "linux" and os.geteuid() == 0 and Path("/dev/net/tun").exists() and bool(shutil.which("ip"))


@contextmanager
def lossy_network(delay: float, jitter: float, loss: float) -> Iterator[LossyNetwork]:
    """A link of its own; this thread, and those it starts, are at the near end until the context ends. Linux.

    Args:
        delay, jitter: seconds; each packet takes delay +- jitter, in each direction. Their order is kept.
        loss: share of packets that are lost, in each direction.

    Raises:
        ConfigError: not root, or no TUN devices.
    """
    if not available():
        raise ConfigError(
            "network namespaces cannot be made here",
            expected="Linux, root, /dev/net/tun, the package iproute2",
            fix="run it as root; in a container with --cap-add NET_ADMIN --cap-add SYS_ADMIN --device /dev/net/tun",
        )
    names = [f"lipstream-{end}-{os.getpid()}" for end in ("near", "far")]
    with ExitStack() as stack:
        devices = []
        for number, (name, address) in enumerate(zip(names, (NEAR, FAR), strict=True)):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            device = f"lips{os.getpid() % 10**7}{'nf'[number]}"
            devices.append(_open_tun(device))
            stack.callback(os.close, devices[-1])
            _ip("link", "set", "dev", device, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", "dev", device, "up")
            _ip("-n", name, "link", "set", "dev", "lo", "up")
        numbers = [str(number) for number in (*devices, delay, jitter, loss)]
        relay = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *numbers], cwd=ROOT, pass_fds=devices, stdout=subprocess.PIPE
        )
        network = LossyNetwork(["ip", "netns", "exec", names[1]])
        try:
            with _inside(names[0]):
                yield network
        finally:
            relay.send_signal(signal.SIGTERM)
            network.packets.update(json.loads(relay.communicate(timeout=10)[0]))


def relay(near: int, far: int, delay: float, jitter: float, loss: float) -> dict[str, int]:
    """Pass packets between two TUN devices until SIGTERM; how many were sent and lost."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    rng = random.Random(0)
    waiting: dict[int, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}  # by the device they go to
    counts = {"sent": 0, "lost": 0}
    while not stopped:
        next_due = min((queue[0][0] for queue in waiting.values() if queue), default=time.monotonic() + 0.1)
        readable, _, _ = select.select([near, far], [], [], max(0.0, next_due - time.monotonic()))
        for device in readable:
            packet = os.read(device, _LONGEST)
            counts["sent"] += 1
            if rng.random() < loss:
                counts["lost"] += 1
                continue
            queue = waiting[far if device == near else near]
            due = time.monotonic() + delay + rng.uniform(-jitter, jitter)
            queue.append((max(due, queue[-1][0]) if queue else due, packet))
        now = time.monotonic()
        for device, queue in waiting.items():
            while queue and queue[0][0] <= now:
                os.write(device, queue.popleft()[1])
    return counts


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))
    return device


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """This thread in the network namespace `name`."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: int) -> None:
        if libc.setns(namespace, _NETWORK):
            raise OSError(ctypes.get_errno(), "setns")

    outside, inside = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/run/netns/{name}"))
    try:
        enter(inside)
        yield
    finally:
        enter(outside)
        os.close(outside)
        os.close(inside)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"ip {' '.join(arguments)}: {done.stderr.strip()}", expected="root")


if __name__ == "__main__":
    print(json.dumps(relay(*map(int, sys.argv[1:3]), *map(float, sys.argv[3:6]))))
