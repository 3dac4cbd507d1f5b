"""Who is followed by which lists: sorted arrays of keyed fingerprints, and a small delta of what has changed since.

One look-up of a subject gives its lists. A fingerprint may hit wrongly (about one look-up in a thousand million), so a
hit is verified before anything is sent; it never misses. The arrays hold no subject, and tell nothing without the key.

    header | buckets: uint32 × (2^bits + 1) | lows: uint32 × count | lists: uint32 × count | names: JSON

The header holds two numbers of whoever makes it: up to which change (`sequence`), and in which history of changes
(`mark`) the arrays are right.

A fingerprint's first `bits` bits choose the bucket, its last 32 are stored in order within it: 8 bytes for a subject
on a list, and about one more for the buckets.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s
from itertools import chain, groupby
from operator import itemgetter
from typing import Final, Protocol, TypeAlias

import msgspec

MAGIC: Final = b"bode-follows-2\0\0"
_HEADER: Final = struct.Struct("<16sBxxxIQQQ")
_LOW: Final = 0xFFFF_FFFF
_FEWEST_BITS: Final = 16
_MOST_BITS: Final = 26
_PER_BUCKET: Final = 4
_ROUND: Final = 1 << 16

Chunk = bytes | memoryview
Numbers: TypeAlias = "array[int] | memoryview"


class NotFollowLists(ValueError):
    """The bytes are not follow lists of this form, or not whole."""


class Marking(Protocol):
    """Gives subjects their fingerprints."""

    def of(self, subject: str) -> int:
        """The keyed 64-bit fingerprint of one subject."""


class Fingerprints:
    """Keyed 64-bit fingerprints of subjects (BLAKE2s)."""

    def __init__(self, key: bytes) -> None:
        """The key is a secret of at most 32 bytes; with another key nothing is found."""
        self._start = blake2s(key=key, digest_size=8).copy

    def of(self, subject: str) -> int:
        """The fingerprint of one subject."""
        state = self._start()
        state.update(subject.encode("utf-8", "surrogatepass"))
        return int.from_bytes(state.digest(), "little")


class Base:
    """The arrays of one version, read in place from bytes that somebody has mapped."""

    def __init__(self, content: bytes | memoryview) -> None:
        """Look at the bytes; nothing is copied.

        Raises:
            NotFollowLists: they are something else or cut off.
        """
        view = memoryview(content)
        if len(view) < _HEADER.size:
            raise NotFollowLists("too short")
        magic, self.bits, self.count, self.sequence, self.mark, names_size = _header(view)
        sizes = [4 * ((1 << self.bits) + 1), 4 * self.count, 4 * self.count, names_size]
        if magic != MAGIC or len(view) != _HEADER.size + sum(sizes):
            raise NotFollowLists("another form, or not whole")
        parts, at = [], _HEADER.size
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        self.buckets, self.lows, self.lists = (part.cast("I") for part in parts[:3])
        self.names: Final = tuple(msgspec.json.decode(parts[3], type=list[str]))
        self.size = len(view)

    def lists_of(self, fingerprint: int) -> list[str]:
        """The lists that hold the fingerprint; a list twice where two of its subjects share one."""
        bucket = fingerprint >> (64 - self.bits)
        low = fingerprint & _LOW
        start, end = self.buckets[bucket], self.buckets[bucket + 1]
        at = bisect_left(self.lows, low, start, end)
        found: list[str] = []
        while at < end and self.lows[at] == low:
            found.append(self.names[self.lists[at]])
            at += 1
        return found


def _header(view: memoryview) -> tuple[bytes, int, int, int, int, int]:
    magic, bits, count, sequence, mark, names_size = _HEADER.unpack_from(view)
    return magic, bits, count, sequence, mark, names_size


class FollowLists:
    """A base and the changes since, as one: `lists_of` is what an index asks.

    Every change given to `add` and `remove` must be a real one: a subject that was not, or was, on the list.
    """

    def __init__(self, fingerprints: Marking, base: Base | None = None) -> None:
        """Start from a base, or from nothing."""
        self._fingerprint = fingerprints.of
        self._base = base or Base(b"".join(map(bytes, _pack([], [], [], 0, _FEWEST_BITS))))
        self._delta: dict[int, dict[str, int]] = {}

    @property
    def changed(self) -> int:
        """Subjects in the delta: past some tens of thousands it is time to merge."""
        return len(self._delta)

    @property
    def base(self) -> Base:
        """The arrays below the changes."""
        return self._base

    def lists_of(self, subject: str) -> tuple[str, ...]:
        """The lists that seem to hold the subject, each once."""
        fingerprint = self._fingerprint(subject)
        found = self._base.lists_of(fingerprint)
        change = self._delta.get(fingerprint) if self._delta else None
        if change is None:
            return tuple(found) if len(found) < 2 else tuple(dict.fromkeys(found))
        counts = {name: found.count(name) for name in found}
        for name, step in change.items():
            counts[name] = counts.get(name, 0) + step
        return tuple(name for name, count in counts.items() if count > 0)

    @property
    def crowded(self) -> bool:
        """Whether there are so many more than when the base was built that building it anew would pay."""
        return self._base.count >> self._base.bits > 16 * _PER_BUCKET

    def add(self, list_id: str, subject: str) -> None:
        """A subject has come onto a list."""
        self.change(list_id, self._fingerprint(subject), 1)

    def remove(self, list_id: str, subject: str) -> None:
        """A subject has left a list."""
        self.change(list_id, self._fingerprint(subject), -1)

    def change(self, list_id: str, fingerprint: int, step: int) -> None:
        """A subject of which only the fingerprint is known has come onto a list (1) or left it (-1).

        Of two subjects with one fingerprint on one list each counts.
        """
        change = self._delta.setdefault(fingerprint, {})
        change[list_id] = change.get(list_id, 0) + step
        if not change[list_id]:
            del change[list_id]
            if not change:
                del self._delta[fingerprint]

    def merged(self, sequence: int, mark: int = 0) -> Iterator[Chunk]:
        """The parts of a file with everything in it, applied up to `sequence`; the delta must rest meanwhile."""
        return _merge(self._base, self._delta, sequence, mark)

    def rebased(self, fingerprints: Marking, base: Base, before: dict[int, dict[str, int]]) -> FollowLists:
        """The same lists on a new base made when the delta was `before`; what came later stays in the delta."""
        fresh = FollowLists(fingerprints, base)
        for fingerprint, change in self._delta.items():
            done = before.get(fingerprint, {})
            left = {name: step - done.get(name, 0) for name, step in change.items()}
            left |= {name: -step for name, step in done.items() if name not in change}
            if left := {name: step for name, step in left.items() if step}:
                fresh._delta[fingerprint] = left
        for fingerprint, done in before.items():
            if fingerprint not in self._delta:
                fresh._delta[fingerprint] = {name: -step for name, step in done.items()}
        return fresh

    def snapshot(self) -> FollowLists:
        """These lists as they are now, to be merged elsewhere while this one goes on changing."""
        copied = FollowLists.__new__(FollowLists)
        copied._fingerprint, copied._base = self._fingerprint, self._base
        copied._delta = self.delta()
        return copied

    def delta(self) -> dict[int, dict[str, int]]:
        """A copy of the changes since the base."""
        return {fingerprint: dict(change) for fingerprint, change in self._delta.items()}


class Builder:
    """Makes a base from lists and fingerprints that come in any order; 12 bytes for each are held meanwhile."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._numbers: dict[str, int] = {}
        self._heaps = [(array("Q"), array("I")) for _ in range(256)]

    def add(self, list_id: str, fingerprint: int) -> None:
        """A subject with this fingerprint is on the list."""
        marks, lists = self._heaps[fingerprint >> 56]
        marks.append(fingerprint)
        lists.append(self._numbers.setdefault(list_id, len(self._numbers)))

    def parts(self, sequence: int, mark: int = 0) -> Iterator[Chunk]:
        """The parts of a file; it can be made once, because what was held is given back on the way."""
        bits = _bits_for(sum(len(marks) for marks, _ in self._heaps))
        buckets, lows, places = array("I", [0]), array("I"), array("I")
        shift, each = 64 - bits, 1 << (bits - 8)
        for heap in range(256):
            marks, lists = self._heaps[heap]
            self._heaps[heap] = (array("Q"), array("I"))
            rows = sorted(
                [
                    ((value >> shift) << 64) | ((value & _LOW) << 32) | number
                    for value, number in zip(marks, lists, strict=True)
                ]
            )
            before = len(lows)
            lows.extend([(row >> 32) & _LOW for row in rows])
            places.extend([row & _LOW for row in rows])
            counts = [0] * each
            first = heap * each
            for row in rows:
                counts[(row >> 64) - first] += 1
            for count in counts:
                before += count
                buckets.append(before)
        return _join(bits, (sequence, mark), [buckets], [lows], [places], len(lows), list(self._numbers))


def build(entries: Iterable[tuple[str, str]], fingerprints: Marking, sequence: int) -> Iterator[Chunk]:
    """The parts of a file from lists and their subjects, in any order."""
    builder = Builder()
    add, of = builder.add, fingerprints.of
    for list_id, subject in entries:
        add(list_id, of(subject))
    return builder.parts(sequence)


def _bits_for(count: int) -> int:
    return min(_MOST_BITS, max(_FEWEST_BITS, (count // _PER_BUCKET).bit_length()))


def _join(
    bits: int,
    version: tuple[int, int],
    buckets: Iterable[Numbers],
    lows: Iterable[Numbers],
    lists: Iterable[Numbers],
    count: int,
    names: list[str],
) -> Iterator[Chunk]:
    encoded = msgspec.json.encode(names)
    yield _HEADER.pack(MAGIC, bits, count, *version, len(encoded))
    for part in chain(buckets, lows, lists):
        yield memoryview(part).cast("B")
    yield encoded


def _pack(buckets: list[int], lows: list[int], lists: list[int], sequence: int, bits: int) -> Iterator[Chunk]:
    filled = array("I", buckets or [0] * ((1 << bits) + 1))
    return _join(bits, (sequence, 0), [filled], [array("I", lows)], [array("I", lists)], len(lows), [])


def _merge(base: Base, delta: dict[int, dict[str, int]], sequence: int, mark: int) -> Iterator[Chunk]:
    """Copy runs of untouched buckets whole and write the touched ones anew; the number of buckets stays.

    What is kept meanwhile are a few flat arrays, and what is sorted are small parts: collecting the garbage of many
    small objects, or sorting all at once, would hold up whoever else runs in the process.
    """
    bits = base.bits
    names = list(base.names)
    numbers = {name: number for number, name in enumerate(names)}
    heaps: list[list[tuple[int, int, int, int]]] = [[] for _ in range(256)]
    for fingerprint, change in delta.items():
        for name, step in change.items():
            if name not in numbers:
                numbers[name] = len(names)
                names.append(name)
            heaps[fingerprint >> 56].append((fingerprint >> (64 - bits), fingerprint & _LOW, numbers[name], step))
    touched, ends, lows, lists = array("I"), array("I", [0]), array("I"), array("I")
    count = base.count
    for bucket, group in groupby(chain.from_iterable(map(sorted, heaps)), itemgetter(0)):
        start, end = base.buckets[bucket], base.buckets[bucket + 1]
        rows = sorted(_changed(list(zip(base.lows[start:end], base.lists[start:end], strict=True)), group))
        touched.append(bucket)
        lows.extend([low for low, _ in rows])
        lists.extend([number for _, number in rows])
        ends.append(len(lows))
        count += len(rows) - (end - start)
    return _join(
        bits,
        (sequence, mark),
        _shifted(base, touched, ends),
        _spliced(base.lows, base, touched, lows, ends),
        _spliced(base.lists, base, touched, lists, ends),
        count,
        names,
    )


def _shifted(base: Base, touched: Sequence[int], ends: Sequence[int]) -> Iterator[Numbers]:
    """Where each bucket ends when the touched ones have been replaced."""
    yield array("I", [0])
    shift = done = 0
    for place, bucket in enumerate([*touched, 1 << base.bits]):
        for at in range(done + 1, bucket + 1, _ROUND):
            run = base.buckets[at : min(at + _ROUND, bucket + 1)]
            yield array("I", [offset + shift for offset in run]) if shift else run
        if bucket == 1 << base.bits:
            return
        start, end = base.buckets[bucket], base.buckets[bucket + 1]
        shift += (ends[place + 1] - ends[place]) - (end - start)
        yield array("I", [end + shift])
        done = bucket + 1


def _spliced(
    column: memoryview, base: Base, touched: Sequence[int], fresh: array[int], ends: Sequence[int]
) -> Iterator[Numbers]:
    """A column with the rows of the touched buckets replaced."""
    done = 0
    for place, bucket in enumerate(touched):
        yield column[done : base.buckets[bucket]]
        yield fresh[ends[place] : ends[place + 1]]
        done = base.buckets[bucket + 1]
    yield column[done:]


def _changed(rows: list[tuple[int, int]], changes: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    for _, low, number, step in sorted(changes, key=itemgetter(3), reverse=True):  # what comes before what goes
        if step > 0:
            rows += [(low, number)] * step
        else:
            for _ in range(-step):
                rows.remove((low, number))
    return rows
