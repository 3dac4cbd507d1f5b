"""Who takes part in the demo, with their keys: five registries, two providers and an operator.

They are made by `broker.tools.demo_parties`, and the keys kept in the data directory, readable by its owner only.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

SOURCES: Final[dict[str, str]] = {
    registry: f"urn:nld:oin:00000099{number:09}000:systeem:{registry.upper()}"
    for number, registry in enumerate(("brp", "hr", "bag", "woz", "brk"), start=1)
}
"""A source for each registry, under an OIN that is set aside for tests."""

REGISTRIES: Final = tuple(SOURCES)
PROVIDERS: Final = {"gemeente": "00000099000000101000", "pensioenfonds": "00000099000000102000"}
_FILE: Final = "demo.json"


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry of the demo."""

    oin: str
    key: str
    source: str


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of the demo."""

    oin: str
    key: str


@dataclass(frozen=True, slots=True)
class Identities:
    """Everyone in the demo, by name."""

    operator: str
    registries: dict[str, Registry]
    providers: dict[str, Provider]

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """Those that were kept in a data directory; None if none were."""
        path = data_dir / _FILE
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        return cls(
            kept["operator"],
            {name: Registry(**registry) for name, registry in kept["registries"].items()},
            {name: Provider(**provider) for name, provider in kept["providers"].items()},
        )

    def keep(self, data_dir: Path) -> None:
        """Keep them in a data directory."""
        descriptor = os.open(data_dir / _FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file, indent=2)
