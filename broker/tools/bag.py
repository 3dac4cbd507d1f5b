"""Kadaster's BAG files as events, streamed: memory stays bounded whatever the size of the file.

| file | event | what it says |
|---|---|---|
| extract (BAG 2.0) | `nl.bag.<object>-voorkomen` | an occurrence as the register holds it |
| mutations (BAG 1.0) | `nl.bag.<object>-nieuw` | an occurrence was added |
| | `nl.bag.<object>-gewijzigd` | an occurrence was changed; `data` has it before and after |

`<object>` is ligplaats, nummeraanduiding, openbare-ruimte, pand, standplaats, verblijfsobject or woonplaats. `subject`
is the BAG id; `time` is the time of registration, or of processing for mutations, which the files give in local time:
in the hour that comes twice in October it is taken as the first. The extension `bagdeel` tells the part of the
register: `bag`, `nietbag` or `inactief`.

Events come in order of `time` over the whole file, all parts together. The files aren't in that order, so the events
are sorted in a nameless temporary database on disk before the first comes out. Only `InOnderzoek` and the relations
between municipality and woonplaats are left out: they hold no occurrences.

Geometry that would make an event too large is left out, and `geometrieWeggelaten` says so.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element
from zoneinfo import ZoneInfo

import orjson

from broker.tools.bag_archive import BagFileError, Limits, Member, walk
from broker.tools.bag_xml import find, local, read_children, records, text
from schemas.cloudevents import DEFAULT_MAX_BYTES, AttributeValue, Draft
from schemas.identifiers import is_bag_id

__all__ = ["EVENT_TYPES", "BagFileError", "Limits", "read_extract", "read_mutations"]

_ROOM = 4096
"""Bytes of an event kept free for what the broker adds to each notification."""
_OBJECTS = {
    "Ligplaats": "ligplaats",
    "Nummeraanduiding": "nummeraanduiding",
    "OpenbareRuimte": "openbare-ruimte",
    "Pand": "pand",
    "Standplaats": "standplaats",
    "Verblijfsobject": "verblijfsobject",
    "Woonplaats": "woonplaats",
}
EVENT_TYPES: dict[str, str] = {
    f"nl.bag.{object_}-{what}": f"An occurrence of object type {object_} {meaning}"
    for object_ in _OBJECTS.values()
    for what, meaning in (
        ("voorkomen", "as the register holds it, from an extract"),
        ("nieuw", "was added"),
        ("gewijzigd", "was changed; with the state before and after"),
    )
}
"""Every type that the two readers can produce, with its meaning in a line."""
_MUTATIONS = "BAG-Mutaties-Deelbestand-LVC"
_SKIPPED = re.compile(r"GEM-WPL-RELATIE|InOnderzoek|Leveringsdocument", re.IGNORECASE)
_PARTS = (
    ("nietbag", re.compile(r"NietBag|^\d{4}NB[A-Z]{3}\d")),
    ("inactief", re.compile(r"InActief|^\d{4}IA[A-Z]{3}\d", re.I)),
)
_GEOMETRY = frozenset(
    {
        "geometrie",
        "ligplaatsGeometrie",
        "pandGeometrie",
        "standplaatsGeometrie",
        "verblijfsobjectGeometrie",
        "woonplaatsGeometrie",
    }
)


class _Placed(NamedTuple):
    """An event with what it is sorted by: the instant, then what tells apart the events of one instant."""

    instant: str
    tie: str
    draft: Draft


def read_extract(
    path: Path, source: str, *, limits: Limits | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Iterator[Draft]:
    """One event for each occurrence in a BAG 2.0 extract, NietBag and inactive parts included. Raises BagFileError."""
    limits = limits or Limits()
    return _sorted(_occurrences(path, source, limits, max_bytes))


def read_mutations(
    path: Path, source: str, *, limits: Limits | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Iterator[Draft]:
    """One event for each Mutatie-product in a BAG 1.0 mutation file. Raises BagFileError."""
    limits = limits or Limits()
    return _sorted(_mutations(path, source, limits, max_bytes))


def _occurrences(path: Path, source: str, limits: Limits, max_bytes: int) -> Iterator[_Placed]:
    for member in _members(path, limits):
        part = _part(member)
        for stand in records(member.chunks, "bagStand", "stand", member.path[-1], limits.record_bytes):
            holder = find(stand, "bagObject")
            if holder is not None and len(holder):
                yield _occurrence(holder[0], part, source, max_bytes)


def _occurrence(element: Element, part: str, source: str, max_bytes: int) -> _Placed:
    object_, subject = _identify(element)
    number, registered = text(element, "voorkomenidentificatie"), text(element, "tijdstipRegistratie")
    attributes = _attributes(f"{object_}-voorkomen", source, subject, part, registered)
    attributes["id"] = "-".join((object_, subject, number, registered, *([part] if part != "bag" else [])))
    tie = f"{text(element, 'tijdstipRegistratieLV')} {number:0>9} {part}"
    return _Placed(_instant(registered), tie, _fitting(attributes, {"deel": part} | read_children(element), max_bytes))


def _mutations(path: Path, source: str, limits: Limits, max_bytes: int) -> Iterator[_Placed]:
    for member in _members(path, limits):
        for product in records(member.chunks, _MUTATIONS, "Mutatie-product", member.path[-1], limits.record_bytes):
            yield _mutation(product, source, max_bytes)


def _mutation(product: Element, source: str, max_bytes: int) -> _Placed:
    states = {
        local(child.tag).lower(): child[0] for child in product if local(child.tag) != "Verwerking" and len(child)
    }
    current = states.get("nieuw", states.get("wijziging"))
    if current is None:
        raise BagFileError("a Mutatie-product with neither Nieuw nor Wijziging")
    object_, subject = _identify(current)
    processed, number = text(product, "TijdstipVerwerking"), text(product, "VolgnrVerwerking")
    part = "inactief" if text(current, "aanduidingRecordInactief") == "J" else "bag"
    what = "nieuw" if "nieuw" in states else "gewijzigd"
    attributes = _attributes(f"{object_}-{what}", source, subject, part, processed)
    attributes["id"] = "-".join((object_, subject, processed, number))
    data: dict[str, Any] = {"deel": part, "verwerking": {"tijdstip": processed, "volgnummer": number}}
    data |= {name: read_children(state) for name, state in states.items()}
    return _Placed(_instant(processed), f"{number:0>9}", _fitting(attributes, data, max_bytes))


def _members(path: Path, limits: Limits) -> Iterator[Member]:
    return (member for member in walk(path, limits) if not _SKIPPED.search("/".join(member.path[1:])))


def _part(member: Member) -> str:
    for part, pattern in _PARTS:
        if any(pattern.search(name) for name in member.path[1:]):
            return part
    return "bag"


def _identify(element: Element) -> tuple[str, str]:
    object_ = _OBJECTS.get(local(element.tag))
    if object_ is None:
        raise BagFileError(f"{local(element.tag)} is not an object type of the BAG")
    own = next((child for child in element if local(child.tag) == "identificatie"), element)
    subject = text(own, "lokaalID" if len(own) else "identificatie")
    if not is_bag_id(subject):
        raise BagFileError(f"a {object_} with a malformed id")
    return object_, subject


def _attributes(what: str, source: str, subject: str, part: str, local_time: str) -> dict[str, AttributeValue]:
    return {
        "specversion": "1.0",
        "source": source,
        "type": f"nl.bag.{what}",
        "subject": subject,
        "time": _with_offset(local_time),
        "datacontenttype": "application/json",
        "bagdeel": part,
    }


def _fitting(attributes: dict[str, AttributeValue], data: dict[str, Any], max_bytes: int) -> Draft:
    draft = Draft(attributes, data)
    if len(draft.encode()) <= max_bytes - _ROOM:
        return draft
    draft = Draft(attributes, _without_geometry(data) | {"geometrieWeggelaten": True})
    if len(draft.encode()) > max_bytes - _ROOM:
        raise BagFileError(f"{attributes['id']}: larger than {max_bytes} bytes without its geometry")
    return draft


def _without_geometry(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_geometry(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if name not in _GEOMETRY
    }


@lru_cache(maxsize=1)
def _amsterdam() -> ZoneInfo:
    """Read when first needed, so that a machine without time zones can do everything else."""
    return ZoneInfo("Europe/Amsterdam")


def _aware(local_time: str) -> datetime:
    try:
        naive = datetime.fromisoformat(local_time)
    except ValueError:
        raise BagFileError("a time that is not ISO 8601") from None
    return naive if naive.tzinfo else naive.replace(tzinfo=_amsterdam())


def _with_offset(local_time: str) -> str:
    """RFC 3339, with the digits of the file."""
    aware = _aware(local_time)
    if datetime.fromisoformat(local_time).tzinfo:
        return local_time
    offset = aware.isoformat()[-6:]
    return f"{local_time}{offset}"


def _instant(local_time: str) -> str:
    return _aware(local_time).astimezone(UTC).isoformat(timespec="microseconds")


def _sorted(events: Iterable[_Placed]) -> Iterator[Draft]:
    """An external sort: SQLite's database "" is a nameless file, removed by the system however the process ends."""
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute(
            "CREATE TABLE event (instant TEXT, tie TEXT, place INTEGER PRIMARY KEY, attributes BLOB, data BLOB)"
        )
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO event (instant, tie, attributes, data) VALUES (?, ?, ?, ?)",
            (
                (instant, tie, orjson.dumps(draft.attributes), orjson.dumps(draft.data))
                for instant, tie, draft in events
            ),
        )
        database.execute("COMMIT")
        for attributes, data in database.execute("SELECT attributes, data FROM event ORDER BY instant, tie, place"):
            yield Draft(orjson.loads(attributes), orjson.loads(data))
