"""HTTP of a process: its ASGI app on a socket that we bind, and the pages `/metrics`, `/livez` and `/readyz`."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from broker.processes.workers import Readiness

READY_FILE = "BODE_READY_FILE"
_GRACE_SECONDS = 5


def status_routes(readiness: Readiness) -> list[Route]:
    """The pages that tell how this process is."""

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        failing = await readiness.failing()
        if failing:
            return PlainTextResponse(f"not ready: {', '.join(failing)}\n", status_code=503)
        return PlainTextResponse("ok\n")

    return [Route("/metrics", metrics), Route("/livez", livez), Route("/readyz", readyz)]


def status_app(readiness: Readiness) -> Starlette:
    """An app of nothing but the status pages."""
    return Starlette(routes=status_routes(readiness))


class Site:
    """One app on one socket; `run` is its worker."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # a caller's address is that of the connection: what it may claim rests on it
            timeout_graceful_shutdown=_GRACE_SECONDS,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._server = _Server(config)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self) -> None:
        """Serve until cancelled; requests under way are finished first."""
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self._server.should_exit = True
            await serving
            raise

    async def started(self) -> None:
        """Wait until it accepts connections."""
        await self._server.listening.wait()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield


def tell_ready(port: int) -> None:
    """Tell the supervisor that started us, if any, that we are ready and on which port."""
    path = os.environ.get(READY_FILE)
    if path:
        temporary = Path(f"{path}.{os.getpid()}")
        temporary.write_text(json.dumps({"pid": os.getpid(), "port": port}))
        temporary.rename(path)
