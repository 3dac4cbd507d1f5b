"""An authorization server that others made: oidc-provider of npm, certified by the OpenID Foundation, on real TLS."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import pytest
from authorities import Authority

from tests.installed_tools import LOCKS, npm_packages

_NAME = "oidc-provider"
_OLDEST_NODE = 20
_INTROSPECTOR = {"client_id": "sink", "client_secret": "van-de-sink"}
SCOPE = "notificaties.ontvangen"


def machine(client_id: str, authentication: str, **members: Any) -> dict[str, Any]:
    """The registration of a client that gets tokens for itself."""
    return {
        "client_id": client_id,
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
        "token_endpoint_auth_method": authentication,
        "scope": SCOPE,
    } | members


def on_behalf(client_id: str, **members: Any) -> dict[str, Any]:
    """The registration of a client that trades refresh tokens, of which it has one from the start."""
    return {
        "client_id": client_id,
        "grant_types": ["refresh_token", "authorization_code"],
        "redirect_uris": ["https://sink.example/terug"],
        "response_types": ["code"],
    } | members


@dataclass
class TokenServer:
    """`told` is what became of each request for a token: client, grant and error if any, in order."""

    port: int
    refresh_tokens: dict[str, str]
    trust: ssl.SSLContext
    told: list[dict[str, str]] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    def of(self, client_id: str) -> list[dict[str, str]]:
        return [told for told in self.told if told.get("client") == client_id]

    async def wait_for(self, client_id: str, count: int) -> list[dict[str, str]]:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.of(client_id)) >= count)
        return self.of(client_id)

    async def wait_for_error(self, client_id: str, error: str) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: any(told.get("error") == error for told in self.of(client_id)))

    async def introspect(self, token: str) -> dict[str, Any]:
        """What the server says of a token to the sink that was shown it (RFC 7662)."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        form = urlencode(_INTROSPECTOR | {"token": token})
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trust)) as session:
            async with session.post(self.url("/token/introspection"), data=form, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                return dict(await answer.json())

    async def listen(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            async with self._changed:
                self.told.append(json.loads(line))
                self._changed.notify_all()

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        program: list[str],
        server: Authority,
        clients: Authority,
        folder: Path,
        registered: list[dict[str, Any]],
        **seconds: int,
    ) -> AsyncIterator[Self]:
        """With these clients, whose access tokens last an hour unless `seconds` says otherwise."""
        issued = server.server()
        settings = {
            "key": issued.key_pem,
            "certificate": issued.chain,
            "clientAuthorities": clients.root.pem,
            "clients": [*registered, machine(authentication="client_secret_post", **_INTROSPECTOR)],
            "seconds": seconds,
        }
        with (folder / "stderr").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, limit=1 << 20
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            async with asyncio.timeout(60):
                first = await process.stdout.readline()
            assert first, (folder / "stderr").read_text()
            ready = json.loads(first)
            trust = ssl.create_default_context(cadata=server.root.pem)
            made = cls(ready["port"], ready["refreshTokens"], trust)
            listening = asyncio.create_task(made.listen(process.stdout))
            yield made
            process.stdin.close()
            async with asyncio.timeout(20):
                await asyncio.gather(listening, process.wait())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def program() -> list[str]:
    """The command that starts it, after it was installed if need be: that takes a while, in which no loop may run."""
    modules = npm_packages(_NAME)
    node = shutil.which("node")
    assert node is not None  # or there were no packages
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.match(r"v(\d+)\.", version)
    if found is None or int(found[1]) < _OLDEST_NODE:
        pytest.skip(f"{_NAME} needs Node {_OLDEST_NODE} or later, this is {version.strip()}")
    return [node, str(LOCKS / _NAME / "server.mjs"), str(modules)]
