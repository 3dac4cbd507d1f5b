"""What `bode bench match` matches: synthetic events of about 850 bytes, and eight kinds of subscriptions.

Values are drawn so that every event has a few matches whatever the number of subscriptions: the larger the set, the
more values there are to ask for. Everything follows from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import orjson

from schemas.filters import DATA, FOLLOWS, Condition, parse

TYPES: Final = tuple(f"nl.{name}.gebeurtenis-{number}" for name in ("brp", "bag", "hr", "brk") for number in range(5))
SHAPES: Final = (
    ("type", "subject"),
    ("type", "gemeente", "soort"),
    ("type", "source", "gemeente", "reden"),
    ("source", "subject"),
    ("type", "postcode"),
    ("type", "postcode", "soort"),
    ("type", "gemeente", "reden", "afdeling"),
    ("subject",),
)
EXTRA: Final = tuple(f"kenmerk{number}" for number in range(12))
FEW: Final = tuple(f"keuze{number}" for number in range(12))
"""Attributes with few values: 3, 8, … 58."""


class World:
    """Events and the values that subscriptions ask for, for one number of subscriptions."""

    def __init__(self, size: int, seed: int) -> None:
        """Scale the value spaces to the number of subscriptions."""
        self.size = size
        self.rng = random.Random(seed)
        spread = max(1, size // 8)
        self.counts = {
            "subject": max(8, spread),
            "postcode": max(4, spread // 20),
            "gemeente": min(342, max(4, spread // 20)),
            "source": min(200, max(2, spread // 100)),
            "soort": max(2, min(40, spread // 200)),
            "reden": max(2, min(60, spread // 500)),
            "afdeling": max(2, min(40, spread // 1000)),
        }

    def value(self, name: str) -> str:
        """A value of an attribute, as events and subscriptions have it."""
        if name == "type":
            return self.rng.choice(TYPES)
        if name.startswith("kenmerk"):
            return f"k{self.rng.randrange(20 + 25 * int(name[7:]))}"
        if name.startswith("keuze"):
            return f"k{self.rng.randrange(3 + 5 * int(name[5:]))}"
        number = self.rng.randrange(self.counts[name])
        match name:
            case "subject":
                return f"{999_000_000 + number:09d}"
            case "postcode":
                return f"{1000 + number % 9000}{chr(65 + number // 9000 % 26)}{chr(65 + number // 234_000 % 26)}"
            case "source":
                return f"urn:nld:oin:{number:020d}:systeem:BRP-component"
            case "gemeente":
                return f"{number:04d}"
        return f"{name}-{number}"

    def event(self, extra: tuple[str, ...] = ()) -> bytes:
        """One event in structured mode, attributes first."""
        names = ("source", "type", "subject", "gemeente", "postcode", "soort", "reden", "afdeling")
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{self.rng.getrandbits(128):032x}",
            "time": "2026-03-16T15:29:30.833664Z",
            "datacontenttype": "application/json",
            **{name: self.value(name) for name in (*names, *extra)},
            "aantal": self.rng.randrange(1000),
        }
        event["data"] = {
            "oud": {"straat": "Dorpsstraat", "huisnummer": 12, "postcode": "1234AB", "plaats": "Testdorp"},
            "nieuw": {"straat": "Kerkweg", "huisnummer": self.rng.randrange(200), "postcode": event["postcode"]},
            "bedrag": self.rng.randrange(100_000),
        }
        event["data"]["toelichting"] = "x" * max(0, 845 - len(orjson.dumps(event)))
        return orjson.dumps(event)


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of subscriptions, by its letter."""

    letter: str
    title: str
    subscriptions: Callable[[World], Iterator[Condition]]
    extra: tuple[str, ...] = ()
    events_max: int = 1_000_000
    """Where an event costs tens of milliseconds, some must do."""


def _equality(world: World, shape: tuple[str, ...]) -> Condition:
    return parse([{"exact": {name: world.value(name) for name in shape}}])


def _equalities(world: World) -> Iterator[Condition]:
    for number in range(world.size):
        yield _equality(world, SHAPES[number % len(SHAPES)])


def _other(world: World, number: int) -> Condition:
    """Ranges, prefixes, suffixes, `any` and ≠, each beside enough equality to match a few."""
    kind = {"exact": {"type": world.value("type")}}
    match number % 5:
        case 0:
            low = world.rng.randrange(100_000)
            bounds = {"ge": low, "lt": low + 20}
            return parse([kind, {"exact": {"gemeente": world.value("gemeente")}}, {DATA: {"/bedrag": bounds}}])
        case 1:
            return parse([kind, {"prefix": {"subject": world.value("subject")[:8]}}])
        case 2:
            gemeente = {"exact": {"gemeente": world.value("gemeente"), "soort": world.value("soort")}}
            return parse([kind, {"suffix": {"subject": world.value("subject")[-5:]}}, gemeente])
        case 3:
            either = [{"exact": {"subject": world.value("subject")}}, {"exact": {"postcode": world.value("postcode")}}]
            return parse([kind, {"any": either}])
    return parse([kind, {"exact": {"subject": world.value("subject")}}, {"not": {"exact": {"soort": "soort-0"}}}])


def _mixed(world: World) -> Iterator[Condition]:
    for number in range(world.size):
        if number % 10:
            yield _equality(world, SHAPES[number % len(SHAPES)])
        else:
            yield _other(world, number // 10)


def _followers(world: World) -> Iterator[Condition]:
    """A hundredth follows a list by subject, a hundredth by the other id; the rest are equalities."""
    for number in range(world.size):
        if number % 100 == 0:
            yield parse([{FOLLOWS: {"subject": f"list-{number // 100 % 4000}"}}], types=[world.value("type")])
        elif number % 100 == 1:
            yield parse([{FOLLOWS: {"afdeling": f"list-{number // 100 % 4000}"}}], types=[world.value("type")])
        else:
            yield _equality(world, SHAPES[number % len(SHAPES)])


def _signatures(world: World, names: tuple[str, ...], count: int) -> Iterator[Condition]:
    """Every combination of up to four of the names, or `count` of them, equally often."""
    shapes = [shape for length in (1, 2, 3, 4) for shape in combinations(names, length)]
    shapes = random.Random(5).sample(shapes, min(count, len(shapes)))
    for number in range(world.size):
        yield _equality(world, shapes[number % len(shapes)])


def _many_signatures(world: World) -> Iterator[Condition]:
    return _signatures(world, ("subject", "postcode", "gemeente", "reden", "soort", *EXTRA), 3000)


def _signatures_of_few_values(world: World) -> Iterator[Condition]:
    return _signatures(world, ("subject", "postcode", "gemeente", "reden", *FEW), 3000)


def _not_indexable(world: World) -> Iterator[Condition]:
    """One equality in five; else single characters between wildcards, two sides that vary, texts too short, a ≠."""
    for number in range(world.size):
        kind = [world.value("type")]
        word = world.value("subject")[4:]
        match number % 5:
            case 0:
                yield _equality(world, ("type", "subject"))
                continue
            case 1:
                expression = f"subject LIKE '%{'_'.join(word[::2])}_'"
            case 2:
                expression = f"aantal = LENGTH(subject) + {world.rng.randrange(100_000)}"
            case 3:
                expression = f"subject LIKE '%{word[-2:]}%' AND postcode LIKE '%{world.value('postcode')[1:3]}%'"
            case _:
                expression = f"gemeente != '{world.value('gemeente')}' AND CONCAT(soort, '{word}') = LOWER(subject)"
        yield parse([{"sql": expression}], types=kind)


def _hardly_indexable(world: World) -> Iterator[Condition]:
    """One equality in five; else three kinds that look hard but are looked up, and wildcards only, within a type."""
    for number in range(world.size):
        kind = [world.value("type")]
        word = world.value("subject")[3:]
        match number % 5:
            case 0:
                yield _equality(world, ("type", "subject"))
            case 1:
                yield parse([{"sql": f"subject LIKE '%{word}%' AND soort != 'soort-1'"}], types=kind)
            case 2:
                yield parse([{"sql": f"LENGTH(subject) = 9 AND RIGHT(subject, 6) = '{word}'"}], types=kind)
            case 3:
                pattern = "_".join(word[::2])
                yield parse([{"sql": f"subject LIKE '%{pattern}_' AND EXISTS soort"}], types=kind)
            case _:
                expression = f"aantal > {world.rng.randrange(1000)} AND LOWER(postcode) LIKE '{word[:4]}%'"
                yield parse([{"sql": expression}], types=kind)


def _hot_key(world: World) -> Iterator[Condition]:
    hot = {"exact": {"type": TYPES[0]}}
    for number in range(world.size):
        yield parse([hot]) if number < 10_000 else _equality(world, SHAPES[number % len(SHAPES)])


WORKLOADS: Final = (
    Workload("a", "equality over 1-4 attributes", _equalities),
    Workload("b", "a tenth other conditions", _mixed),
    Workload("c", "follow lists", _followers),
    Workload("d", "3,000 signatures", _many_signatures, EXTRA),
    Workload("e", "four of five not indexable", _not_indexable, events_max=200),
    Workload("f", "one hot key with 10,000 matches", _hot_key),
    Workload("g", "2,516 signatures, most attributes with few values", _signatures_of_few_values, FEW),
    Workload("h", "four of five look hardly indexable, one is not", _hardly_indexable),
)
