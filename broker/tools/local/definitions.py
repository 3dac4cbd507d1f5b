"""Who may do what on a private RabbitMQ, as its definitions file says it."""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

EXCHANGE: Final = "bode.events"
VHOST: Final = "bode"
BROKER: Final = "bode"
"""The user of the broker's own processes. As an impersonator it may publish what came in over HTTP as its registry."""
_NOTHING: Final = "^$"
_SALT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Registry:
    """A user that may publish events of the types that start with `prefix`, and nothing else."""

    name: str
    prefix: str


def definitions(
    registries: Iterable[Registry], passwords: Mapping[str, str], former: Iterable[str] = ()
) -> dict[str, Any]:
    """The definitions file's content. `former` registries can neither log in nor publish any more."""
    users = [_user(BROKER, passwords[BROKER], "administrator,impersonator")]
    permissions = [_permission(BROKER, configure=".*", write=".*", read=".*")]
    topics = []
    for registry in registries:
        users.append(_user(registry.name, passwords[registry.name]))
        permissions.append(_permission(registry.name, write=f"^{re.escape(EXCHANGE)}$"))
        topics.append(
            {
                "user": registry.name,
                "vhost": VHOST,
                "exchange": EXCHANGE,
                "write": f"^{re.escape(registry.prefix)}",
                "read": _NOTHING,
            }
        )
    for name in former:
        users.append(_user(name, secrets.token_urlsafe()))
        permissions.append(_permission(name))
    return {"vhosts": [{"name": VHOST}], "users": users, "permissions": permissions, "topic_permissions": topics}


def password_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's `rabbit_password_hashing_sha256`: base64 of salt and SHA-256 of salt and password."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _user(name: str, password: str, tags: str = "") -> dict[str, str]:
    return {
        "name": name,
        "password_hash": password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }


def _permission(user: str, configure: str = _NOTHING, write: str = _NOTHING, read: str = _NOTHING) -> dict[str, str]:
    return {"user": user, "vhost": VHOST, "configure": configure, "write": write, "read": read}
