"""Proof for a listener: what it received, held against what the broker says that it delivered.

Of each notification a mark is kept, 32 bytes at the place of its number: of them and of the tombstones the digests of a
reconciliation are made anew (`docs/completeness.md`). A mark is in the file before its notification is answered.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from broker.tools.client import Api
from broker.tools.listen_ledger import Range, say

_PRIVATE: Final = 0o600
_MARK_BYTES: Final = 32
_ABSENT: Final = bytes(_MARK_BYTES)


def mark_of(source: str, event_id: str) -> bytes:
    """What stands for an event in a digest."""
    return sha256(f"{source}\n{event_id}".encode()).digest()


def digest(marks: Iterable[tuple[int, bytes]]) -> str:
    """The digest of a block: of the marks of its delivered numbers, in whatever order they came."""
    hasher = sha256()
    for number, mark in sorted(marks):
        hasher.update(b"%d %s\n" % (number, mark.hex().encode()))
    return hasher.hexdigest()


class Marks:
    """The marks of what was received of one subscription, in a file of its own."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def put(self, number: int, source: str, event_id: str) -> None:
        """Note what came under a number."""
        os.pwrite(self._file, mark_of(source, event_id), number * _MARK_BYTES)

    def between(self, first: int, last: int) -> Iterator[tuple[int, bytes | None]]:
        """Each number with its mark; None: nothing came under it."""
        content = os.pread(self._file, (last - first + 1) * _MARK_BYTES, first * _MARK_BYTES)
        for number in range(first, last + 1):
            start = (number - first) * _MARK_BYTES
            mark = content[start : start + _MARK_BYTES]
            yield number, mark if len(mark) == _MARK_BYTES and mark != _ABSENT else None


class Reconciler:
    """Reconciles one subscription, from its first number to its last."""

    def __init__(self, api: Api, subscription: str, marks: Marks) -> None:
        self._api = api
        self._path = f"/subscriptions/{subscription}/reconciliation"
        self._marks = marks

    async def run(self) -> str | None:
        """Compare all digests, and tell the result in a line; None: no number was given yet.

        Raises:
            CallFailed: the API can't be asked.
        """
        faults: list[str] = []
        outside: dict[str, list[Range]] = {}
        first = 1
        while True:
            answer = await self._api.get(f"{self._path}?from={first}")
            tombstones = [(stone["from"], stone["to"]) for stone in answer["tombstones"]]
            for stone in answer["tombstones"]:
                outside.setdefault(stone["state"], []).extend(self._not_here(stone["from"], stone["to"]))
            for block in answer["blocks"]:
                fault = self._compare(block, tombstones)
                if fault is not None:
                    faults.append(f"block {block['from']}–{block['to']} differs: {fault}")
            if answer["next"] is None:
                break
            first = answer["to"] + 1
        if answer["to"] == 0:
            return None
        if faults:
            return "✖ " + "; ".join(faults)
        rest = [f", {state}: {say(_joined(ranges))}" for state, ranges in outside.items() if ranges]
        return f"✔ reconciled 1–{answer['to']}{''.join(rest)}"

    def _not_here(self, first: int, last: int) -> list[Range]:
        return _joined((number, number) for number, mark in self._marks.between(first, last) if mark is None)

    def _compare(self, block: Mapping[str, Any], tombstones: list[Range]) -> str | None:
        """What is wrong with a block; None: nothing."""
        outside = {
            number
            for first, last in tombstones
            for number in range(max(first, block["from"]), min(last, block["to"]) + 1)
        }
        delivered, missing = [], []
        for number, mark in self._marks.between(block["from"], block["to"]):
            if number not in outside:
                if mark is None:
                    missing.append((number, number))
                else:
                    delivered.append((number, mark))
        if missing:
            return f"{say(_joined(missing))} did not come here"
        return None if digest(delivered) == block["digest"] else "what came here is not what was sent"


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Adjacent ranges as one; they come in order."""
    joined: list[Range] = []
    for first, last in ranges:
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
