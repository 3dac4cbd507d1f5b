"""Which subscriptions an event is for, at a cost that doesn't grow with the number of subscriptions.

Subscriptions are partitioned by exact event type, with one partition for the rest; a probe of hash tables answers for
each. Changes are made in place: `match` sees a change as soon as `put` or `discard` has returned.
An index belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from broker.matching.atoms import Literal
from broker.matching.context import Context, ListsOf
from broker.matching.explain import Explanation, alternative
from broker.matching.guards import Guard, follows_in, names_in
from broker.matching.partition import Partition
from broker.matching.placements import Behind, Exact, Placement, keys_of
from broker.matching.plan import Conjunction, Span, conjunctions
from broker.matching.projection import Projection, all_attributes
from schemas.cloudevents import Event
from schemas.filters import Condition, FollowListsMissing

Place = tuple[str | None, Placement]
Hit = tuple[str, str]
"""A follow list and a subject."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a condition would cost in an index: shown in the preview, limited for each organisation."""

    conjunctions: int
    evaluated_always: int
    """Conjunctions that no table helps with: evaluated for every event of their type."""
    any_type: bool
    """Whether some conjunction is tried for events of every type."""


def cost(condition: Condition) -> Cost:
    """What a condition would cost in an index."""
    found, _ = conjunctions(condition)
    return Cost(
        len(found),
        sum(not each.keys and bool(each.guards) for each in found),
        any(each.event_type is None for each in found),
    )


def _no_lists(subject: str) -> tuple[str, ...]:
    raise FollowListsMissing(subject and "an index without follow lists was asked for them")


class Index:
    """Subscriptions by key, a whole number that the caller chooses."""

    def __init__(self, lists_of: ListsOf = _no_lists) -> None:
        """Start without subscriptions; `lists_of` gives the follow lists that seem to hold a subject."""
        self.lists_of = lists_of
        self._partitions: dict[str | None, Partition] = {}
        self._rest = self._partitions[None] = Partition(lists_of, self._guard)
        self._places: dict[int, Place | list[Place]] = {}
        self._guards: WeakValueDictionary[tuple[Literal, ...], Guard] = WeakValueDictionary()
        self._names: set[str] = {"type"}
        self._projection: Projection | None = None
        self._following: dict[int, tuple[Hit, ...]] = {}

    def __len__(self) -> int:
        """How many subscriptions there are."""
        return len(self._places)

    @property
    def scanned(self) -> int:
        """Conjunctions that are evaluated for every event of their type, because no table helps."""
        return sum(partition.scanned for partition in self._partitions.values())

    def guards(self) -> list[Guard]:
        """The conditions that are evaluated, each once."""
        return list(self._guards.values())

    def partitions_for(self, event: Event) -> Iterator[Partition]:
        """Where subscriptions that may match the event stand."""
        partition = self._partitions.get(str(event.attributes["type"]))
        if partition is not None:
            yield partition
        yield self._rest

    def put(self, key: int, condition: Condition) -> None:
        """Add a subscription or replace its condition."""
        found, shared = conjunctions(condition)
        if key in self._places:
            self.discard(key)
        places = [(each.event_type, self._partition(each.event_type).add(key, each, shared)) for each in found]
        self._places[key] = places[0] if len(places) == 1 else places
        self._note(found, key)

    def discard(self, key: int) -> None:
        """Remove a subscription, if it is there."""
        places = self._places.pop(key, None)
        if places is None:
            return
        self._following.pop(key, None)
        for event_type, placement in places if isinstance(places, list) else (places,):
            partition = self._partitions[event_type]
            partition.remove(key, placement)
            if not partition.size and event_type is not None:
                del self._partitions[event_type]

    def match(self, event: Event) -> list[int]:
        """Every matching subscription once, in no particular order.

        Where follow lists are concerned it may give one too many, never one too few: see `hits` and `confirmed`.
        """
        attributes = event.attributes
        out: list[int] = []
        many: list[int] = []
        context = None
        partition = self._partitions.get(attributes["type"])  # type: ignore[arg-type] # of a valid event it is a string
        if partition is not None:
            context = (partition.on_mapping or partition.probe())(attributes, event.body, out, many, None)
        rest = self._rest
        if rest.size:
            (rest.on_mapping or rest.probe())(attributes, event.body, out, many, context)
        if many:
            out += dict.fromkeys(many)
        return out

    def match_body(self, body: bytes) -> list[int]:
        """The same for a structured-mode event in canonical form, reading only what some filter refers to."""
        projection = self._projection or self._project()
        try:
            struct = projection.decode(body)
        except msgspec.DecodeError:
            return self.match(Event(all_attributes(body), body))
        out: list[int] = []
        many: list[int] = []
        context = None
        partition = self._partitions.get(struct.f0)
        if partition is not None:
            probe = partition.on_struct or partition.probe_struct(projection)
            context = probe(struct, body, out, many, None)
        rest = self._rest
        if rest.size:
            (rest.on_struct or rest.probe_struct(projection))(struct, body, out, many, context)
        if many:
            out += dict.fromkeys(many)
        return out

    def explain(self, key: int, event: Event) -> Explanation:
        """Why the subscription matches the event or not.

        Raises:
            KeyError: there is no such subscription.
        """
        context = Context(event.attributes, event.body, self.lists_of)
        return Explanation(tuple(alternative(each, context) for each in self._conjunctions(key)))

    def followers(self, keys: Iterable[int]) -> list[int]:
        """Those of the keys whose filters name a follow list; what they match may rest on hits."""
        following = self._following
        return [key for key in keys if key in following] if following else []

    def hits(self, event: Event, keys: Iterable[int]) -> set[Hit]:
        """Follow lists and subjects that matches rest on: to be verified before a delivery gets its number.

        Most matches rest on none; for them this costs one look-up each.
        """
        found: set[Hit] = set()
        following = self._following
        if not following:
            return found
        context: Context | None = None
        for key in keys:
            for name, list_id in following.get(key, ()):
                context = context or Context(event.attributes, event.body, self.lists_of)
                subject = context.text(name)
                if subject is not None and context.follows(name, list_id):
                    found.add((list_id, subject))
        return found

    def confirmed(self, event: Event, keys: Iterable[int], verified: set[Hit]) -> list[int]:
        """Those of the keys that still match when only verified hits count."""

        def lists_of(subject: str) -> tuple[str, ...]:
            return tuple(list_id for list_id, verified_subject in verified if verified_subject == subject)

        context = Context(event.attributes, event.body, lists_of)
        return [
            key
            for key in keys
            if key not in self._following or any(alternative(each, context).holds for each in self._conjunctions(key))
        ]

    def _partition(self, event_type: str | None) -> Partition:
        partition = self._partitions.get(event_type)
        if partition is None:
            partition = self._partitions[event_type] = Partition(self.lists_of, self._guard)
        return partition

    def _guard(self, literals: tuple[Literal, ...]) -> Guard:
        guard = self._guards.get(literals)
        if guard is None:
            guard = self._guards[literals] = Guard(literals)
        return guard

    def _note(self, found: list[Conjunction], key: int) -> None:
        """Remember which follow lists a subscription asks for, and see whether the projection must read more."""
        following: set[tuple[str, str]] = set()
        for each in found:
            for reading, value in each.keys:
                if reading.kind == "list":
                    following.add((reading.name, str(value)))
                if reading.name not in self._names and not self._names.issuperset(reading.names):
                    self._names.update(reading.names)
                    self._projection = None
            literals = each.span.literals if each.span else each.guards
            for literal in literals:
                following.update(follows_in(literal[0]))
                if not self._names.issuperset(names := names_in(literal[0])):
                    self._names.update(names)
                    self._projection = None
        if following:
            self._following[key] = tuple(following)

    def _project(self) -> Projection:
        """Make the projection anew, from what is still asked for."""
        readings = {reading for partition in self._partitions.values() for reading in partition.readings()}
        names = {name for reading in readings for name in reading.names}
        for guard in self._guards.values():
            names.update(name for term, _ in guard.literals for name in names_in(term))
        self._names = {"type", *names}
        for partition in self._partitions.values():
            partition.on_struct = None
        self._projection = Projection(self._names)
        return self._projection

    def _conjunctions(self, key: int) -> Iterator[Conjunction]:
        places = self._places[key]
        for event_type, placement in places if isinstance(places, list) else (places,):
            yield placement.conjunction if isinstance(placement, Behind) else _read_back(event_type, placement)


def _read_back(event_type: str | None, placement: Exact) -> Conjunction:
    """The conjunction that a place in a table stands for."""
    table, key, part = placement
    keys = keys_of(table, key)
    if isinstance(part, Span):
        return Conjunction(event_type, keys, part, ())
    return Conjunction(event_type, keys, None, part.literals if isinstance(part, Guard) else ())
