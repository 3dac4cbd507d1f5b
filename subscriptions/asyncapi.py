"""The catalogue as an AsyncAPI 3.0 document: what Bode receives from registries, and what it sends to sinks."""

from collections.abc import Iterable
from typing import Any, Final

from schemas.data_schemas import rebased
from schemas.notices import MEANINGS, NoticeType, data_schema
from subscriptions.database import AnyRow

VERSION: Final = "3.0.0"
MOST_TYPES: Final = 2_000
EXCHANGE: Final = "bode.events"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"
_CONTENT_TYPE: Final = "application/cloudevents+json"


def document(rows: Iterable[AnyRow], *, api_url: str, api_version: str) -> dict[str, Any]:
    """Makes the document from rows of `catalogue.described`."""
    channels: dict[str, Any] = {
        "notifications": {
            "title": "Notifications",
            "description": "The sink of a subscription: Bode posts notifications to the URL that its provider gave.",
            "address": None,
            "messages": {},
        }
    }
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for row in rows:
        messages[row.type] = _message(row)
        channels[row.type] = {
            "address": row.type,
            "title": row.type,
            "description": row.meaning,
            "messages": {row.type: {"$ref": _reference("components", "messages", row.type)}},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
                    "bindingVersion": "0.3.0",
                }
            },
        }
        operations[f"receive.{row.type}"] = {
            "action": "receive",
            "title": f"Take in {row.type}",
            "channel": {"$ref": _reference("channels", row.type)},
            "messages": [{"$ref": _reference("channels", row.type, "messages", row.type)}],
        }
        channels["notifications"]["messages"][row.type] = {"$ref": _reference("components", "messages", row.type)}
    for kind in NoticeType:
        messages[kind.value] = _notice(kind)
        reference = _reference("components", "messages", kind.value)
        channels["notifications"]["messages"][kind.value] = {"$ref": reference}
    operations["notify"] = {
        "action": "send",
        "title": "Notify a sink",
        "description": "Signed by Standard Webhooks; with the attributes `subscription` and `subscriptionsequence`.",
        "channel": {"$ref": _reference("channels", "notifications")},
        "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
    }
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Bode",
            "version": api_version,
            "description": "Events of registries, and the notifications that providers receive of them.",
            "license": {"name": "EUPL-1.2", "url": "https://eupl.eu/1.2/en/"},
            "externalDocs": {"url": f"{api_url}/openapi.json", "description": "The REST API."},
        },
        "defaultContentType": _CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _notice(kind: NoticeType) -> dict[str, Any]:
    """A notice of Bode's own, which providers subscribe to like to any other type."""
    envelope = _envelope(kind.value, "When it was last so.")
    envelope["properties"]["data"] = data_schema(kind)
    return {
        "name": kind.value,
        "title": kind.value,
        "summary": MEANINGS[kind],
        "contentType": _CONTENT_TYPE,
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": envelope},
    }


def _envelope(event_type: str, time_meaning: str | None) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A CloudEvent in structured mode.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string"},
            "source": {"type": "string", "format": "uri-reference"},
            "type": {"const": event_type},
            "subject": {"type": "string"},
            "time": {"type": "string", "format": "date-time", "description": time_meaning or "RFC 3339."},
        },
    }


def _message(row: AnyRow) -> dict[str, Any]:
    envelope = _envelope(row.type, row.time_meaning)
    if row.data_schema is not None:
        place = _reference("components", "messages", row.type, "payload", "schema", "properties", "data")
        envelope["properties"]["data"] = rebased(row.data_schema, place)
    told = {"deprecated": True} if row.deprecated_at is not None else {}
    facts = {
        "x-registry-oin": row.oin,
        "x-information-level": row.information_level,
        "x-filter-attributes": row.filter_attributes,
        "x-retention-days": row.retention_days,
        "x-delay-seconds": row.delay_seconds,
        "x-deprecated-at": _moment(row.deprecated_at),
        "x-sunset-at": _moment(row.sunset_at),
        "x-successor": row.successor,
    }
    return {
        "name": row.type,
        "title": row.type,
        "summary": row.meaning,
        "contentType": _CONTENT_TYPE,
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": envelope | told},
        **({"externalDocs": {"url": row.documentation_link}} if row.documentation_link else {}),
        **{name: value for name, value in facts.items() if value is not None},
    }


def _moment(value: Any) -> str | None:
    return None if value is None else value.isoformat()


def _reference(*steps: str) -> str:
    return "#/" + "/".join(step.replace("~", "~0").replace("/", "~1") for step in steps)
