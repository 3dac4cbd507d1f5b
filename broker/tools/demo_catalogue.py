"""What the demo's registries say of their event types: their meaning, and a schema made of a sample.

Nothing is validated and anything may be filtered on: demo types accept any data.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.tools import samples
from broker.tools.identities import SOURCES
from schemas.data_schemas import DIALECT
from schemas.resources import EventTypeBody, InformationLevel
from subscriptions import catalogue
from subscriptions.tables import event_types

_MOMENT: Final = datetime(2026, 1, 1, tzinfo=UTC)


async def describe_types(connection: AsyncConnection, registries: Mapping[str, UUID]) -> None:
    """Describe the types that nobody has described yet; `registries` are organisations by name. Idempotent."""
    known = set((await connection.execute(select(event_types.c.type))).scalars())
    for kind in samples.CATALOGUE:
        if kind.type in known or kind.registry not in registries:
            continue
        draft = samples.sample(kind.type, SOURCES[kind.registry], Random(0), lambda: _MOMENT)
        said = {
            "type": kind.type,
            "meaning": kind.meaning + ".",
            "timeMeaning": "When the registry registered it.",
            "informationLevel": InformationLevel.RICH,
            "dataSchema": {"$schema": DIALECT, **_schema(draft.data)},
        }
        body = EventTypeBody.model_validate(said)
        await catalogue.describe(connection, body, organisation_id=registries[kind.registry])


def _schema(value: Any) -> dict[str, Any]:
    """What a value looks like, as a schema that demands nothing but the kinds of what is there."""
    match value:
        case dict():
            return {"type": "object", "properties": {name: _schema(content) for name, content in value.items()}}
        case list():
            return {"type": "array", "items": _schema(value[0]) if value else True}
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
    return {}
