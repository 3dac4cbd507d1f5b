"""Run in a network and mount namespace of its own (`unshare -mn`), in which every address there is leads to a canary.

The system's resolver asks our name server, so what is tried here is the fence as it runs: getaddrinfo, connect and
all. Prints one JSON object; see test_fence_sockets.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from dns_server import DnsServer
from hostile_sinks import HOSTILE, ZONE, Canary

from broker.delivery.client import Client
from broker.delivery.exchanges import SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.handshake import Handshaker
from subscriptions.database import DatabaseSettings, create_engine

NAME_SERVER = "127.53.0.53"
PORT = 8080
OTHER_PORTS = (22, 25, 53, 443, 5432, 6379)


def furnish(folder: Path) -> None:
    """Make every address ours, and our name server the one that the system asks."""
    (folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\noptions timeout:2 attempts:1\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
        f"mount --bind {folder}/resolv.conf /etc/resolv.conf",
        f"mount --bind {folder}/hosts /etc/hosts",
    ):
        subprocess.run(command.split(), check=True)


async def post(client: Client, url: str) -> str:
    try:
        return str((await client.request("POST", Target.of(url), {"content-type": "text/plain"}, b"x")).status)
    except SendError as error:
        return error.reason.value
    except ValueError:
        return "not-a-sink"


async def options(client: Client, url: str) -> str:
    engine = create_engine(DatabaseSettings.model_validate({"url": "postgresql://nobody@127.0.0.1:1/none"}))
    result = await Handshaker(engine, client, "bode.example").shake_hands(url)
    return f"{type(result).__name__}: {getattr(result, 'reason', '')}"


async def main() -> dict[str, Any]:
    server = await DnsServer(ZONE).start(NAME_SERVER, 53)
    canary = await Canary().start(("0.0.0.0", "::"), (*OTHER_PORTS, PORT))
    strict, ports = Fence(), Fence(ports=(443, 8443))
    opened = Fence(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    clients = [Client(fence, total_seconds=3) for fence in (strict, opened, ports)]
    fenced, unfenced, limited = clients
    sinks = {}
    for hostile in HOSTILE:
        url = hostile.url.format(port=PORT)
        told = {"post": await post(fenced, url), "options": await options(fenced, url), "heard": canary.take()}
        await post(unfenced, url)
        sinks[hostile.url] = told | {"without": canary.take()}
    good = {}
    for name in ("good.test", "good6.test"):
        good[name] = [await post(fenced, f"http://{name}:{PORT}/"), canary.take()]
    flips = [[await post(fenced, f"http://flips.test:{PORT}/"), canary.take()] for _ in range(3)]
    redirecting = f"http://redirects.test:{PORT}/"
    redirects = [await post(fenced, redirecting), await options(fenced, redirecting), canary.take()]
    refused_ports = {}
    for port in (*OTHER_PORTS, PORT):
        refused_ports[port] = [await post(limited, f"http://good.test:{port}/"), canary.take()]
    for client in clients:
        client.close()
    for fence in (strict, opened, ports):
        fence.close()
    await canary.stop()
    server.close()
    return {
        "sinks": sinks, "good": good, "flips": flips, "redirects": redirects, "ports": refused_ports,
        "asked": server.asked.total(),
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder))
        json.dump(asyncio.run(main()), sys.stdout)
