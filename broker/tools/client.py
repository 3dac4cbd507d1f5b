"""A small client of the REST API, for the tools.

CallFailed
├── ApiProblem      the API answered with a problem; carries its status
└── Unreachable     no answer, or none that is the API's
"""

from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from broker.tools.running import Access

JSON: Final = "application/json"
_SECONDS: Final = 15.0


class CallFailed(Exception):
    """A call that didn't do what it was for; the message is for people."""


class ApiProblem(CallFailed):
    """The API answered with a problem (RFC 9457)."""

    def __init__(self, status: int, detail: str, retry_after: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class Unreachable(CallFailed):
    """There is no API there, or not now."""


class Api:
    """The API as one caller sees it; paths are from under `/v1`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._access.key}"}
        limit = aiohttp.ClientTimeout(total=_SECONDS)
        self._session = aiohttp.ClientSession(headers=headers, timeout=limit, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str) -> Any:
        """Read a resource."""
        return await self.call("GET", path)

    async def post(self, path: str, body: Any) -> Any:
        """Make a resource."""
        return await self.call("POST", path, orjson.dumps(body))

    async def patch(self, path: str, changes: Any) -> Any:
        """Change a resource by a JSON merge patch."""
        return await self.call("PATCH", path, orjson.dumps(changes), "application/merge-patch+json")

    async def delete(self, path: str) -> None:
        """End a resource."""
        await self.call("DELETE", path)

    async def call(self, method: str, path: str, body: bytes | None = None, content_type: str = JSON) -> Any:
        """Make one request; returns the answer's JSON, None where it has no body.

        Raises:
            ApiProblem: any status from 400 on.
            Unreachable: no answer in time.
        """
        assert self._session is not None, "enter the client before calling"
        headers = {} if body is None else {"Content-Type": content_type}
        url = self._access.api_url + path
        try:
            async with self._session.request(method, url, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"no answer from {self._access.api_url} ({type(error).__name__})") from error
        if response.status >= 400:
            raise _problem(response.status, content, response.headers.get("Retry-After"))
        try:
            return orjson.loads(content) if content else None
        except ValueError as error:
            raise Unreachable(f"what answers at {self._access.api_url} is not Bode's API") from error


def _problem(status: int, content: bytes, retry_after: str | None) -> ApiProblem:
    try:
        detail = str(orjson.loads(content)["detail"])
    except (ValueError, TypeError, KeyError):
        detail = "no explanation was given"
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return ApiProblem(status, f"{detail} ({status})", seconds)
