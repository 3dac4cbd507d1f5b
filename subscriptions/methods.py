"""Which methods a place knows. GET comes with HEAD, and every place answers OPTIONS (RFC 9110, 9.1 and 9.3.7)."""

from typing import Any, Final

from starlette.routing import Match

METHODS: Final = ("GET", "PUT", "POST", "PATCH", "DELETE")


def allow(app: Any, scope: Any) -> str:
    """Returns the value of `Allow` for the place of a request; empty: there is no such place."""
    known = [method for method in METHODS if _is_known(app, scope, method)]
    if not known:
        return ""
    if "GET" in known:
        known.insert(1, "HEAD")
    return ", ".join([*known, "OPTIONS"])


def _is_known(app: Any, scope: Any, method: str) -> bool:
    asked = {**scope, "method": method}
    return any(route.matches(asked)[0] is Match.FULL for route in app.router.routes)
