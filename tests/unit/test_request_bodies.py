import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from subscriptions import bodies
from subscriptions.bodies import limited


async def test_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)

    async def never() -> Any:
        await asyncio.Event().wait()

    request = Request({"type": "http", "headers": [(b"content-length", b"10")]}, never)
    with pytest.raises(HTTPException) as refused:
        await limited(request, 100)()
    assert refused.value.status_code == 400
