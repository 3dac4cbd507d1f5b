"""How much matching an event looks at in vain: for benchmarks and tests, slowly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.matching.accessors import Accessor
from broker.matching.context import Context
from broker.matching.guards import Guard, read
from broker.matching.index import Index
from broker.matching.partition import Partition
from broker.matching.probes import grams
from broker.matching.trie import Node, Pair
from schemas.cloudevents import Event


def candidates(index: Index, events: Sequence[Event]) -> float:
    """Candidates an event, the mean: subscriptions that were found, guards tried, and nodes of tries visited."""
    tried = 0

    def counted(guard: Guard) -> None:
        test = guard.test

        def count(context: Context) -> bool:
            nonlocal tried
            tried += 1
            return test(context)

        guard.test = count

    guards = index.guards()
    for guard in guards:
        counted(guard)
    try:
        found = sum(len(index.match(event)) for event in events)
    finally:
        for guard in guards:
            guard.add_home(0)  # which chooses the test again
    visited = 0
    for event in events:
        context = Context(event.attributes, event.body, index.lists_of)
        for partition in index.partitions_for(event):
            visited += nodes_visited(partition, context)
    return (found + tried + visited) / len(events)


def nodes_visited(partition: Partition, context: Context) -> int:
    """How many nodes of the partition's trie an event comes to."""
    have: set[Pair] = set()
    for reading, known in partition.pairs.items():
        have.update(known[value] for value in _values(reading, context) if value in known)
    nodes: list[Node] = list(have)
    for node in nodes:
        nodes.extend((node.children or {})[pair] for pair in (node.below or set()) & have)
    return len(nodes)


def _values(reading: Accessor, context: Context) -> Iterator[object]:
    if reading.kind == "gram":
        yield from grams(context.text(reading.name))
    elif reading.kind == "list":
        text = context.text(reading.name)
        yield from context.lists_of(text) if text is not None else ()
    else:
        yield read(reading, context)
