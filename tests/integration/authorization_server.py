"""A stand-in for an authorization server: real keys, a key set on a socket, tokens good and bad."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://auth.example.nl", "https://bode.example.nl"


class AuthorizationServer:
    """Issues tokens; `keys` is what it publishes, by kid."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"one": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.fetches = 0
        self.status = 200
        self.body: bytes | None = None
        self.url = ""

    def rotate(self, kid: str) -> None:
        """Replace every key by a new one."""
        self.keys = {kid: ec.generate_private_key(ec.SECP256R1())}

    def key_set(self) -> bytes:
        members = []
        for kid, key in self.keys.items():
            kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
            members.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
        return json.dumps({"keys": members}).encode()

    def token(self, oin: Any, scope: Any, *, kid: str | None = None, header: Any = None, **claims: Any) -> str:
        """A token signed by the key that is published now, or by `kid`; claims of None are left out."""
        kid = kid or next(iter(self.keys))
        key = self.keys[kid]
        now = int(time.time())
        said = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "iat": now, "oin": oin, "scope": scope} | claims
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            key,
            algorithm="RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256",
            headers={"kid": kid} | (header or {}),
        )

    def forged(self, oin: str, algorithm: str) -> str:
        """A token without a signature, or with the public key taken for a secret."""
        kid, key = next(iter(self.keys.items()))
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "oin": oin, "scope": "events.consume"}
        header = {"alg": algorithm, "typ": "JWT", "kid": kid}
        signed = ".".join(_part(json.dumps(part).encode()) for part in (header, claims))
        if algorithm.lower() == "none":
            return signed + "."
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return f"{signed}.{_part(hmac.new(pem, signed.encode(), hashlib.sha256).digest())}"

    async def _answer(self, _: web.Request) -> web.Response:
        self.fetches += 1
        return web.Response(status=self.status, body=self.key_set() if self.body is None else self.body)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["AuthorizationServer"]:
        """Serve the key set on a free port."""
        app = web.Application()
        app.router.add_get("/jwks", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
        try:
            yield self
        finally:
            await runner.cleanup()


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
