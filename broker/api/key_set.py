"""`/.well-known/jwks.json`: the public keys with which anyone verifies `v1a` signatures."""

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from subscriptions.signing_keys import key_set

PATH = "/.well-known/jwks.json"
_KEPT_SECONDS = 300


def key_set_route(engine: AsyncEngine) -> Route:
    """The page, beside `/v1` and open to all; it may be kept for five minutes."""

    async def jwks(_: Request) -> Response:
        async with engine.connect() as connection:
            keys = await key_set(connection)
        headers = {"Cache-Control": f"public, max-age={_KEPT_SECONDS}", "Access-Control-Allow-Origin": "*"}
        return Response(orjson.dumps(keys), media_type="application/jwk-set+json", headers=headers)

    return Route(PATH, jwks)
