"""The subscriptions that ask for one event type (or for no one type): their tables, and what stands in which.

    exact    a table for precisely the accessors of a conjunction: one look-up, no false candidates
    behind   rarer combinations of accessors stand in one trie, by the pairs of accessor and value that they ask for

A combination that has become frequent moves from behind to a table of its own, one that has become rare beside many
others moves behind. So an event costs a bounded number of
look-ups, whatever combinations people think of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from broker.matching.accessors import GRAM, Accessor
from broker.matching.atoms import Literal, Reads
from broker.matching.context import ListsOf
from broker.matching.guards import Guard
from broker.matching.pairs import Directory
from broker.matching.placements import Behind, Exact, Placement, Shape, arrangement, keys_of
from broker.matching.plan import Conjunction, Key
from broker.matching.probes import Probe, build
from broker.matching.projection import Projection
from broker.matching.tables import Form, Signature, Table
from broker.matching.trie import Pair, Trie
from schemas.filters.algebra import Pointer

FIRST_EXACT: Final = 16
"""Combinations of accessors that get a table of their own at once."""
MOST_EXACT: Final = 64
"""Combinations with a table of their own, those included that came to it by number."""
FREQUENT: Final = 64
"""A combination behind others moves when it has this many conjunctions, and this part of its partition's."""
RARE: Final = 128
"""A combination with a table of its own gives it up when it has less than this part of its partition's conjunctions."""

GuardFor: TypeAlias = Callable[[tuple[Literal, ...]], Guard]


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
        self._trie = Trie()
        self._directory = Directory()
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
        shape, positions = known
        shape.count += 1
        if not shape.exact:
            return self._place_behind(number, shape, conjunction, shared)
        return self._place_exact(number, shape, positions, conjunction, shared)

    def remove(self, number: int, placement: Placement) -> None:
        """Take a conjunction out again."""
        self.size -= 1
        placement = self._whereabouts(number, placement)
        if isinstance(placement, Behind):
            keys, shape = placement.conjunction.keys, placement.shape
            del shape.behind[placement]
            self._leave_trie(number, placement)
        else:
            table, key, part = placement
            keys, shape = keys_of(table, key), self._shapes[table.form.signature]
            self._leave(number, table, key, part)
        shape.count -= 1
        for reading, value in keys:
            if reading.kind == "gram":
                self._grams[reading, value] -= 1

    def _whereabouts(self, number: int, placement: Placement) -> Placement:
        """Where a conjunction stands now, however often its combination has moved; forgets the way."""
        while True:
            if isinstance(placement, Behind):
                if placement.moved is None:
                    return placement
                placement = placement.moved
            else:
                table, key, part = placement
                moved = table.moved.pop((number, key, part), None) if table.moved else None
                if moved is None:
                    return placement
                placement = moved

    def probe(self) -> Probe:
        """Generate the function over all tables that takes attributes as a mapping."""
        self.on_mapping = self._build(None)
        return self.on_mapping

    def probe_struct(self, projection: Projection) -> Probe:
        """The same for attributes as the projection reads them."""
        self.on_struct = self._build(projection)
        return self.on_struct

    @property
    def pairs(self) -> Mapping[Accessor, Mapping[object, Pair]]:
        """The nodes that the trie's paths begin with, by accessor and value."""
        return self._directory.pairs

    def forget_probes(self) -> None:
        """Something is new: the next event generates the functions again."""
        self.on_mapping = self.on_struct = None

    def _build(self, projection: Projection | None) -> Probe:
        self._tidy()
        tables = list(self._tables.values())
        pairs = self._directory.pairs if self._trie.size else {}
        root = self._trie.root if self._trie.size else None
        probe, self.source = build(tables, root, pairs, self._pointers, self._lists_of, projection)
        return probe

    def readings(self) -> Iterator[Accessor]:
        """What the probe reads from an event."""
        yield from self._directory.pairs
        for form in self._tables:
            yield from form.signature
            if form.measure is not None:
                yield form.measure

    def _tidy(self) -> None:
        """Drop what has become empty; between two probes it stays, so that coming and going costs nothing."""
        for shape in list(self._shapes.values()) if self._trie.size else ():
            if shape.exact and shape.signature and shape.count * RARE < self.size:
                self._demote(shape)
        self._tables = {form: table for form, table in self._tables.items() if table.size}
        self._shapes = {signature: shape for signature, shape in self._shapes.items() if shape.count}
        self._orders = {order: known for order, known in self._orders.items() if known[0].count}
        self._exact = sum(shape.exact for shape in self._shapes.values() if shape.signature)
        self._directory.tidy()
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
        positions = arrangement(order)
        signature = tuple(order[at] for at in positions)
        shape = self._shapes.get(signature)
        if shape is None:
            exact = not signature or self._exact < FIRST_EXACT
            self._exact += exact and bool(signature)
            shape = self._shapes[signature] = Shape(signature, exact)
        self._orders[order] = shape, positions
        return shape, positions

    def _place_exact(
        self, number: int, shape: Shape, positions: tuple[int, ...], conjunction: Conjunction, shared: bool
    ) -> Exact:
        keys = conjunction.keys
        key: Hashable = keys[0][1] if len(keys) == 1 else tuple([keys[at][1] for at in positions])
        span = conjunction.span
        if conjunction.guards:
            form, part = Form(shape.signature, "guarded", shared), self._guard_for(conjunction.guards)
            return self._enter(number, form, key, part)
        if span is not None:
            return self._enter(number, Form(shape.signature, "span", shared, span.accessor), key, span)
        return self._enter(number, Form(shape.signature, "plain", shared), key, None)

    def _place_behind(self, number: int, shape: Shape, conjunction: Conjunction, shared: bool) -> Behind:
        placement = Behind(conjunction, shape, shared)
        keys = conjunction.keys
        paired = tuple([key for key in keys if self._paired(key[0])])
        literals = (
            *((Reads(*key), True) for key in keys if not self._directory.has(key[0])),
            *(conjunction.span.literals if conjunction.span else conjunction.guards),
        )
        guard = self._guard_for(literals) if literals else None
        if not self._trie.size:
            self.forget_probes()
        placement.paired = paired
        placement.path, placement.rest, new = self._trie.add(self._directory.use(paired), guard, shared, number)
        self.scanned += not paired
        if guard is not None:
            self._house(guard, 1, new)
        shape.behind[placement] = number
        if shape.count >= FREQUENT and shape.count * FREQUENT >= self.size and self._exact < MOST_EXACT:
            self._promote(shape)
        return placement

    def _leave_trie(self, number: int, placement: Behind) -> None:
        gone = self._trie.remove(placement.path, placement.rest, number)
        self._directory.release(placement.paired)
        self.scanned -= not placement.paired
        guard = placement.rest[1]
        if guard is not None:
            self._house(guard, -1, gone)

    def _promote(self, shape: Shape) -> None:
        """Give a frequent combination a table of its own and move its conjunctions there."""
        shape.exact = True
        self._exact += 1
        moving, shape.behind = shape.behind, {}
        for placement, number in moving.items():
            self._leave_trie(number, placement)
            positions = arrangement(tuple([key[0] for key in placement.conjunction.keys]))
            placement.moved = self._place_exact(number, shape, positions, placement.conjunction, placement.shared)

    def _demote(self, shape: Shape) -> None:
        """Move the conjunctions of a rare combination behind, where that spares events a look-up; spans stay."""
        tables = [table for form, table in self._tables.items() if form.signature == shape.signature]
        paired = all(map(self._directory.has, shape.signature))
        if not paired or any(table.form.mode == "span" for table in tables):
            return
        self.forget_probes()
        shape.exact = False
        for table in tables:
            moved = table.moved = table.moved or {}
            for key, part, number in list(table.entries()):
                self._leave(number, table, key, part)
                guards = part.literals if part is not None else ()
                conjunction = Conjunction(None, keys_of(table, key), None, guards)
                moved[number, key, part] = self._place_behind(number, shape, conjunction, table.form.shared)

    def _enter(self, number: int, form: Form, key: Hashable, part: Any) -> Exact:
        table = self._tables.get(form)
        if table is None:
            table = self._tables[form] = Table(form)
            self.forget_probes()
        new = table.add(key, part, number)
        if form.mode == "guarded":
            self.scanned += not form.signature
            self._house(part, 1, new)
        return table, key, part

    def _leave(self, number: int, table: Table, key: Hashable, part: Any) -> None:
        gone = table.remove(key, part, number)
        if table.form.mode == "guarded":
            self.scanned -= not table.form.signature
            self._house(part, -1, gone)

    def _house(self, guard: Guard, step: int, moved: bool) -> None:
        """Keep count of a guard's homes and of the pointers that guards read."""
        if moved:
            guard.add_home(step)
        for pointer in guard.pointers:
            if not self._pointers[pointer]:
                self.forget_probes()
            self._pointers[pointer] += step

    def _paired(self, reading: Accessor) -> bool:
        """Whether the accessor's values are paired, from now on if there is room."""
        if self._directory.has(reading):
            return True
        if self._directory.admit(reading):
            self.forget_probes()
            return True
        return False
