"""What `bode bench match` matches: synthetic events of about 850 bytes, and six kinds of subscriptions.

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
            return f"k{self.rng.randrange(3 + 5 * int(name[7:]))}"
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

    def event(self, extra: bool = False) -> bytes:
        """One event in structured mode, attributes first."""
        names = ("source", "type", "subject", "gemeente", "postcode", "soort", "reden", "afdeling")
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{self.rng.getrandbits(128):032x}",
            "time": "2026-03-16T15:29:30.833664Z",
            "datacontenttype": "application/json",
            **{name: self.value(name) for name in (*names, *(EXTRA if extra else ()))},
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
    extra: bool = False


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


def _many_signatures(world: World) -> Iterator[Condition]:
    names = ("subject", "postcode", "gemeente", "reden", *EXTRA)
    shapes = [shape for length in (1, 2, 3, 4) for shape in combinations(names, length)]
    shapes = random.Random(5).sample(shapes, min(3000, len(shapes)))
    for number in range(world.size):
        yield _equality(world, shapes[number % len(shapes)])


def _hardly_indexable(world: World) -> Iterator[Condition]:
    """One equality in five; else a part of a value, an expression, wildcards only, and two guards, within a type."""
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
    Workload("d", "3,000 signatures", _many_signatures, extra=True),
    Workload("e", "four of five hardly indexable", _hardly_indexable),
    Workload("f", "one hot key with 10,000 matches", _hot_key),
)
