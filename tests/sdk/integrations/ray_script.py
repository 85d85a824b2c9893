"""Two replicas with a session each; one replica is killed. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

sys.path.append(os.environ["BESIDE"])
os.environ["PYTHONPATH"] = os.environ["BESIDE"]  # for the workers
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from lipstream.server.ray import application
from lipstream.server.settings import Settings
from ray import serve
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


async def opened(address: str) -> ClientConnection:
    """A session that was admitted; tries until one is."""
    for _ in range(200):
        try:
            client = await connect(address, max_size=None)
            await client.send('{"type": "start", "idle": "reference"}')
            while True:
                message = await client.recv()
                if isinstance(message, str) and '"started"' in message:
                    return client
        except (ConnectionClosed, InvalidStatus, OSError):
            await asyncio.sleep(0.3)
    raise TimeoutError("no session was admitted")


async def watch(client: ClientConnection, seconds: float) -> dict[str, Any]:
    """Pictures in so many seconds, or how the connection ended."""
    pictures, code = 0, None
    try:
        async with asyncio.timeout(seconds):
            while True:
                pictures += (await client.recv())[:1] == b"\1"
    except TimeoutError:
        pass
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else 1006
    return {"pictures": pictures, "code": code}


def replicas() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::ServeReplica"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


async def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(include_dashboard=False, num_cpus=4, object_store_memory=100 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(max_sessions=1, threads=1, total_limit=60)
    serve.run(application(settings, least=2, replicas=2), route_prefix="/")
    address = f"ws://127.0.0.1:{port}/v1/session"
    clients = [await opened(address), await opened(address)]
    before = await asyncio.gather(*(watch(client, 3) for client in clients))
    pids = replicas()
    os.kill(pids[0], signal.SIGKILL)
    after = await asyncio.gather(*(watch(client, 5) for client in clients))
    for client in clients:
        client.transport.abort()
    again = await opened(address)  # on the other, or on the new one
    again.transport.abort()
    print(json.dumps({"replicas": len(pids), "before": before, "after": after}), flush=True)
    serve.shutdown()
    ray.shutdown()


asyncio.run(main())
