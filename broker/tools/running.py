"""What `bode up` tells of itself in `bode.json`: where the API is, and with which key to call it.

NotFound    nothing runs, or it doesn't know the name; the message says what to do
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NotFound(Exception):
    """What was asked for isn't in `bode.json`."""


@dataclass(frozen=True, slots=True)
class Access:
    """An API and a key for it. `name` is that of the organisation, where it is known."""

    api_url: str
    key: str = field(repr=False)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """All that a registry needs to publish; `amqp_url` is None where there is no RabbitMQ."""

    access: Access
    source: str
    amqp_url: str | None = field(repr=False)


class Running:
    """The installation that runs on a data directory."""

    def __init__(self, data_dir: Path) -> None:
        """Read `bode.json`.

        Raises:
            NotFound: there is none, so nothing is ready there.
        """
        try:
            about: Any = json.loads((data_dir / "bode.json").read_bytes())
        except (OSError, ValueError):
            raise NotFound(
                f"no bode.json in {data_dir}: start `bode up --demo` first, or give --api and --key"
            ) from None
        self.api_url: str = about["api"]
        self._keys: Mapping[str, Any] = about.get("keys") or {}

    def anyone(self, name: str) -> Access:
        """The access of a provider, of a registry, or of the `operator`.

        Raises:
            NotFound: there is nobody of this name.
        """
        if name == "operator" and name in self._keys:
            return Access(self.api_url, self._keys[name], name)
        if name in self._keys.get("registries", ()):
            return self.registry(name).access
        return self.provider(name)

    def provider(self, name: str | None) -> Access:
        """The access of a provider. Without a name: of the first.

        Raises:
            NotFound: there is no such provider.
        """
        name, keys = self._find("providers", name)
        return Access(self.api_url, keys["key"], name)

    def registry(self, name: str) -> RegistryAccess:
        """The access of a registry.

        Raises:
            NotFound: there is no such registry.
        """
        name, keys = self._find("registries", name)
        return RegistryAccess(Access(self.api_url, keys["key"], name), keys["source"], keys["amqp"])

    def _find(self, kind: str, name: str | None) -> tuple[str, Any]:
        known: Mapping[str, Any] = self._keys.get(kind, {})
        chosen = next(iter(known), None) if name is None else name
        if chosen is None or chosen not in known:
            there_are = (
                f"there are {', '.join(known)}" if known else "this installation has no demo: give --api and --key"
            )
            raise NotFound(f"bode.json knows no {name or 'such name'} among its {kind}; {there_are}")
        return chosen, known[chosen]
