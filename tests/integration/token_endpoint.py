"""A token endpoint of a provider: what it answers, and the credential that names it."""

import json
from collections.abc import Callable
from typing import Any

from delivering import Asked, RawSink, answer


def issued(token: str, *, seconds: Any = 3600, **members: Any) -> bytes:
    body = {"access_token": token, "token_type": "Bearer", "expires_in": seconds} | members
    return answer("200 OK", "Content-Type: application/json", body=json.dumps(body))


def tokens(server: RawSink, *answers: bytes | Callable[[Asked], Any]) -> None:
    """What the token server answers, in turn, then the last for ever."""
    left = list(answers)

    def give(asked: Asked) -> Any:
        given = left.pop(0) if len(left) > 1 else left[0]
        return given(asked) if callable(given) else given

    server.answers["POST", "/token"] = give


def client(server: RawSink, **members: Any) -> dict[str, Any]:
    return {
        "credentialType": "CLIENTCREDENTIALS",
        "tokenEndpoint": server.url("/token"),
        "clientId": "bode",
        "clientSecret": "geheim+1",
    } | members
