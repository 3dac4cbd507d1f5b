"""The subscriptions that ask for one event type (or for no one type): their tables, and which table takes what.

    exact    a table for precisely the accessors of a conjunction: one look-up, no false candidates
    behind   rarer combinations of accessors stand in a table for one or two of them, wherever they find the
             emptiest bucket; what else they ask of the event is a set of numbered pairs, checked at once

A combination that has become frequent moves from behind to a table of its own. So an event costs a bounded number of
look-ups, whatever combinations people think of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from itertools import combinations
from math import prod
from typing import Any, Final, TypeAlias, cast

from broker.matching.accessors import GRAM, Accessor
from broker.matching.atoms import Literal, Reads
from broker.matching.context import ListsOf
from broker.matching.guards import Guard
from broker.matching.pairs import Pairs
from broker.matching.plan import Conjunction, Key
from broker.matching.probes import Probe, build
from broker.matching.projection import Projection
from broker.matching.tables import Form, Signature, Table
from schemas.filters.algebra import Pointer

FIRST_EXACT: Final = 16
"""Combinations of accessors that get a table of their own at once."""
MOST_EXACT: Final = 64
"""Combinations with a table of their own, those included that came to it by number."""
FREQUENT: Final = 64
"""A combination behind others moves when it has this many conjunctions, and this part of its partition's."""
MOST_BEHIND: Final = 128
"""Tables that the other combinations share."""
CROWDED: Final = 4
"""Entries of a bucket from which a pair of accessors is tried instead of one."""

Exact: TypeAlias = tuple[Table, Hashable, Any]
GuardFor: TypeAlias = Callable[[tuple[Literal, ...]], Guard]


class Behind:
    """Where a conjunction of a rare combination stands; changed in place when the combination moves."""

    __slots__ = ("conjunction", "key", "pairs", "part", "shared", "table")

    def __init__(self, conjunction: Conjunction, shared: bool) -> None:
        """Not placed yet."""
        self.conjunction = conjunction
        self.shared = shared
        self.table: Table
        self.key: Hashable = ()
        self.part: Any = None
        self.pairs: tuple[Key, ...] = ()


Placement: TypeAlias = Exact | Behind


class Shape:
    """Conjunctions with the same accessors: how many, and, while they stand behind others, which."""

    __slots__ = ("behind", "count", "exact", "signature")

    def __init__(self, signature: Signature, exact: bool) -> None:
        """Start with none."""
        self.signature = signature
        self.count = 0
        self.exact = exact
        self.behind: dict[Behind, int] = {}


class Partition:
    """Tables of one event type with the probe over them; a probe is made again only for a new table or pointer."""

    def __init__(self, lists_of: ListsOf, guard_for: GuardFor) -> None:
        """Start empty."""
        self.size = 0
        self.scanned = 0
        """Conjunctions without any key: evaluated for every event that comes here."""
        self.source = ""
        self._lists_of = lists_of
        self._guard_for = guard_for
        self._tables: dict[Form, Table] = {}
        self._orders: dict[Signature, tuple[Shape, tuple[int, ...]]] = {}
        self._shapes: dict[Signature, Shape] = {}
        self._exact = 0
        self._behind: set[Signature] = set()
        self._pairs = Pairs()
        self._grams: Counter[tuple[Accessor, object]] = Counter()
        self._pointers: Counter[Pointer] = Counter()
        self.on_mapping: Probe | None = None
        self.on_struct: Probe | None = None

    def add(self, number: int, conjunction: Conjunction, shared: bool) -> Placement:
        """Place a conjunction for a subscription."""
        self.size += 1
        if any(key[0].kind == "gram" for key in conjunction.keys):
            conjunction = replace(conjunction, keys=tuple(map(self._with_rare_gram, conjunction.keys)))
        order = tuple([key[0] for key in conjunction.keys])
        known = self._orders.get(order)
        if known is None:
            known = self._new_order(order)
        shape, arrangement = known
        shape.count += 1
        if not shape.exact:
            return self._place_behind(number, shape, conjunction, shared)
        return self._place_exact(number, shape, arrangement, conjunction, shared)

    def remove(self, number: int, placement: Placement) -> None:
        """Take a conjunction out again."""
        self.size -= 1
        if isinstance(placement, Behind):
            shape, _ = self._orders[tuple([key[0] for key in placement.conjunction.keys])]
            table, key, part = placement.table, placement.key, placement.part
            shape.behind.pop(placement, None)
            self._pairs.release(placement.pairs)
        else:
            table, key, part = placement
            shape = self._shapes[table.form.signature]
        shape.count -= 1
        if any(reading.kind == "gram" for reading in table.form.signature):
            for reading, value in keys_of(table, key):
                if reading.kind == "gram":
                    self._grams[reading, value] -= 1
        self._leave(number, table, key, part)

    def probe(self) -> Probe:
        """Generate the function over all tables that takes attributes as a mapping."""
        self.on_mapping = self._build(None)
        return self.on_mapping

    def probe_struct(self, projection: Projection) -> Probe:
        """The same for attributes as the projection reads them."""
        self.on_struct = self._build(projection)
        return self.on_struct

    def forget_probes(self) -> None:
        """Something is new: the next event generates the functions again."""
        self.on_mapping = self.on_struct = None

    def _build(self, projection: Projection | None) -> Probe:
        self._tidy()
        tables = list(self._tables.values())
        probe, self.source = build(tables, self._pairs.numbers, self._pointers, self._lists_of, projection)
        return probe

    def readings(self) -> Iterator[Accessor]:
        """What the probe reads from an event."""
        yield from self._pairs.numbers
        for form in self._tables:
            yield from form.signature
            if form.measure is not None:
                yield form.measure

    def _tidy(self) -> None:
        """Drop what has become empty; between two probes it stays, so that coming and going costs nothing."""
        self._tables = {form: table for form, table in self._tables.items() if table.size}
        self._behind = {form.signature for form in self._tables if form.mode in ("counted", "both")}
        self._shapes = {signature: shape for signature, shape in self._shapes.items() if shape.count}
        self._orders = {order: known for order, known in self._orders.items() if known[0].count}
        self._exact = sum(shape.exact for shape in self._shapes.values() if shape.signature)
        self._pairs.tidy()
        self._pointers = +self._pointers
        self._grams = +self._grams

    def _with_rare_gram(self, key: Key) -> Key:
        """For a text to be contained: its run of three characters that fewest others were put under."""
        reading, value = key
        if reading.kind != "gram":
            return key
        text = str(value)
        used = self._grams
        gram = min((text[at : at + GRAM] for at in range(len(text) - GRAM + 1)), key=lambda each: used[reading, each])
        used[reading, gram] += 1
        return reading, gram

    def _new_order(self, order: Signature) -> tuple[Shape, tuple[int, ...]]:
        arrangement = tuple(sorted(range(len(order)), key=lambda at: order[at].number))
        signature = tuple(order[at] for at in arrangement)
        shape = self._shapes.get(signature)
        if shape is None:
            exact = not signature or self._exact < FIRST_EXACT
            self._exact += exact and bool(signature)
            shape = self._shapes[signature] = Shape(signature, exact)
        self._orders[order] = shape, arrangement
        return shape, arrangement

    def _place_exact(
        self, number: int, shape: Shape, arrangement: tuple[int, ...], conjunction: Conjunction, shared: bool
    ) -> Exact:
        keys = conjunction.keys
        key: Hashable = keys[0][1] if len(keys) == 1 else tuple([keys[at][1] for at in arrangement])
        span = conjunction.span
        if conjunction.guards:
            form, part = Form(shape.signature, "guarded", shared), self._guard_for(conjunction.guards)
            return self._enter(number, form, key, part)
        if span is not None:
            return self._enter(number, Form(shape.signature, "span", shared, span.accessor), key, span)
        return self._enter(number, Form(shape.signature, "plain", shared), key, None)

    def _place_behind(self, number: int, shape: Shape, conjunction: Conjunction, shared: bool) -> Behind:
        placement = Behind(conjunction, shared)
        chosen = self._choose(conjunction.keys)
        signature = tuple(sorted((key[0] for key in chosen), key=lambda reading: reading.number))
        values = dict(chosen)
        key: Hashable = values[signature[0]] if len(signature) == 1 else tuple(values[each] for each in signature)
        numbered = tuple(each for each in conjunction.keys if self._numbered(each[0]))
        pairs = {each[0]: self._pairs.use(each) for each in numbered}
        placement.pairs = numbered
        need = frozenset(pair for reading, pair in pairs.items() if reading not in values)
        literals = [
            *((Reads(*each), True) for each in conjunction.keys if each[0] not in values and each[0] not in pairs),
            *(conjunction.span.literals if conjunction.span else conjunction.guards),
        ]
        if literals:
            part: Any = (need, self._guard_for(tuple(literals)))
            entered = self._enter(number, Form(signature, "both", shared), key, part)
        else:
            entered = self._enter(number, Form(signature, "counted", shared), key, need)
        placement.table, placement.key, placement.part = entered
        shape.behind[placement] = number
        if shape.count >= FREQUENT and shape.count * FREQUENT >= self.size and self._exact < MOST_EXACT:
            self._promote(shape)
        return placement

    def _choose(self, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        """The one or two keys under which a conjunction stands: those that the fewest events will have.

        Events are taken to be spread over values as conjunctions are. A pair is tried where one key's bucket is full.
        """
        several = tuple(key for key in keys if key[0].several)
        plain = [key for key in keys if not key[0].several]
        rounds = [
            [*([several] if several else []), *((*several, key) for key in plain)],
            [(*several, *pair) for pair in combinations(plain, 2)],
        ]
        best: tuple[Key, ...] = ()
        least: float | None = None
        for choices in rounds:
            for choice in choices:
                if (share := self._share(choice)) is not None and (least is None or share < least):
                    best, least = choice, share
            if best and self._weight(best) < CROWDED:
                break
        return best

    def _share(self, keys: tuple[Key, ...]) -> float | None:
        """The part of events that will have these keys; nothing if there is neither such a table nor room for one."""
        if self._signature(keys) not in self._behind and len(self._behind) >= MOST_BEHIND:
            return None
        return prod(map(self._pairs.share, keys))

    def _signature(self, keys: tuple[Key, ...]) -> Signature:
        return tuple(sorted((key[0] for key in keys), key=lambda reading: reading.number))

    def _weight(self, keys: tuple[Key, ...]) -> int:
        """How many entries stand under these keys already."""
        signature = self._signature(keys)
        values = dict(keys)
        key: Hashable = values[signature[0]] if len(signature) == 1 else tuple(values[each] for each in signature)
        forms = (Form(signature, mode, shared) for mode in ("counted", "both") for shared in (False, True))
        return sum(table.weight(key) for form in forms if (table := self._tables.get(form)) is not None)

    def _promote(self, shape: Shape) -> None:
        """Give a frequent combination a table of its own and move its conjunctions there."""
        shape.exact = True
        self._exact += 1
        moving, shape.behind = shape.behind, {}
        for placement, number in moving.items():
            self._leave(number, placement.table, placement.key, placement.part)
            self._pairs.release(placement.pairs)
            placement.pairs = ()
            arrangement = self._orders[tuple([key[0] for key in placement.conjunction.keys])][1]
            entered = self._place_exact(number, shape, arrangement, placement.conjunction, placement.shared)
            placement.table, placement.key, placement.part = entered

    def _enter(self, number: int, form: Form, key: Hashable, part: Any) -> Exact:
        table = self._tables.get(form)
        if table is None:
            table = self._tables[form] = Table(form)
            self.forget_probes()
            if form.mode in ("counted", "both"):
                self._behind.add(form.signature)
        new = table.add(key, part, number)
        if part is not None:
            self._house(form, part, 1, new)
        return table, key, part

    def _leave(self, number: int, table: Table, key: Hashable, part: Any) -> None:
        gone = table.remove(key, part, number)
        if part is not None:
            self._house(table.form, part, -1, gone)

    def _house(self, form: Form, part: Any, step: int, moved: bool) -> None:
        """Keep count of a guard's homes, of the pointers that guards read, and of what is scanned."""
        if not form.signature and form.mode != "span":
            self.scanned += step
        if form.mode in ("guarded", "both"):
            guard: Guard = part if form.mode == "guarded" else part[1]
            if moved:
                guard.add_home(step)
            for pointer in guard.pointers:
                if not self._pointers[pointer]:
                    self.forget_probes()
                self._pointers[pointer] += step

    def _numbered(self, reading: Accessor) -> bool:
        """Whether the accessor's values are numbered, from now on if there is room."""
        if self._pairs.has(reading):
            return True
        if self._pairs.admit(reading):
            self.forget_probes()
            return True
        return False


def keys_of(table: Table, key: Hashable) -> tuple[Key, ...]:
    """A table's key as accessors with their values."""
    signature = table.form.signature
    values = (key,) if len(signature) == 1 else cast("tuple[object, ...]", key)
    return tuple(zip(signature, values, strict=True))
