"""Which pages of other origins may read answers (the Fetch standard's CORS protocol).

Browsers need it; nothing here authorises anyone. Credentials are keys and tokens in `Authorization`, which a page has
to send itself, so cookies are never allowed.
"""

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders

ANY_ORIGIN: Final = "*"
_OPEN_TO_ALL: Final = ("/openapi.json", "/asyncapi.json")
_EXPOSED: Final = "API-Version, ETag, Idempotency-Replayed, Location, Retry-After, WWW-Authenticate, X-Request-Id"
_ACCEPTED: Final = "Accept, Authorization, Content-Type, Idempotency-Key, If-Match, traceparent, tracestate"
_PREFLIGHT_SECONDS: Final = 600


class Cors:
    """The origins whose pages may read answers; documents are open to all (API Design Rules, publish-openapi)."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def complete(self, path: str, asked: Headers, answered: MutableHeaders) -> None:
        """Adds what a browser needs to let a page of the asking origin read this answer."""
        if path.endswith(_OPEN_TO_ALL):
            answered["Access-Control-Allow-Origin"] = ANY_ORIGIN
            return
        if not self._origins:
            return
        answered.add_vary_header("Origin")
        origin = asked.get("origin")
        if origin in self._origins:
            answered["Access-Control-Allow-Origin"] = origin
            answered["Access-Control-Expose-Headers"] = _EXPOSED

    def preflight(self, allow: str, asked: Headers) -> dict[str, str]:
        """Returns what the answer to a preflight says besides; nothing when it isn't one, or of another origin."""
        if "access-control-request-method" not in asked or asked.get("origin") not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Methods": allow,
            "Access-Control-Allow-Headers": _ACCEPTED,
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }
