"""LIKE patterns (specification 3.4.3), matched without backtracking.

The pattern is cut at `%` into pieces; the first and last are anchored, the others are searched for
from left to right, each at its first place, which is enough. Literal pieces are found by `str.find`; pieces with `_`
by a bit-parallel scan: the work is linear in the value for any pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Piece = tuple[str | None, ...]
"""Characters that must stand there; `None` stands for any one character (`_`)."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern taken apart: `pieces` were separated by `%`; one piece means that there was none."""

    pieces: tuple[Piece, ...]

    @property
    def literal(self) -> tuple[str, ...] | None:
        """The pieces as strings, or nothing if some piece has a `_`."""
        texts = tuple("".join(part for part in piece if part is not None) for piece in self.pieces)
        return texts if all(None not in piece for piece in self.pieces) else None

    @property
    def scans(self) -> bool:
        """Whether the value is gone through character by character: for a `_` in a piece that may stand anywhere."""
        return any(None in piece for piece in self.pieces[1:-1])


def parse(text: str) -> Pattern:
    r"""Take a pattern apart; `\%` and `\_` stand for themselves, any other backslash for itself."""
    pieces: list[list[str | None]] = [[]]
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in ("%", "_"):
            position += 1
            pieces[-1].append(text[position])
        elif character == "%":
            pieces.append([])
        else:
            pieces[-1].append(None if character == "_" else character)
        position += 1
    first, *middle, last = pieces if len(pieces) > 1 else [pieces[0], []]
    if len(pieces) == 1:
        return Pattern((tuple(first),))
    return Pattern((tuple(first), *(tuple(piece) for piece in middle if piece), tuple(last)))


def matcher(pattern: Pattern) -> Callable[[str], bool]:
    """Compile a pattern to a test of a value."""
    if len(pattern.pieces) == 1:
        whole = pattern.pieces[0]
        if None not in whole:
            text = "".join(part for part in whole if part is not None)
            return lambda value: value == text
        return lambda value: len(value) == len(whole) and _stands_at(whole, value, 0)
    first, *middle, last = pattern.pieces
    finders = [_finder(piece) for piece in middle]

    def matches(value: str) -> bool:
        end = len(value) - len(last)
        position = len(first)
        if end < position or not (_stands_at(first, value, 0) and _stands_at(last, value, end)):
            return False
        for find, size in finders:
            position = find(value, position, end)
            if position < 0:
                return False
            position += size
        return True

    return matches


def _stands_at(piece: Piece, value: str, position: int) -> bool:
    return all(part is None or value[position + offset] == part for offset, part in enumerate(piece))


def _finder(piece: Piece) -> tuple[Callable[[str, int, int], int], int]:
    if None not in piece:
        text = "".join(part for part in piece if part is not None)
        return (lambda value, start, end: value.find(text, start, end)), len(piece)
    return _scanner(piece), len(piece)


def _scanner(piece: Piece) -> Callable[[str, int, int], int]:
    """Shift-And: bit i of the state says that the first i + 1 parts stand right before here."""
    anything = sum(1 << place for place, part in enumerate(piece) if part is None)
    masks: dict[str, int] = {}
    for place, part in enumerate(piece):
        if part is not None:
            masks[part] = masks.get(part, anything) | 1 << place
    done = 1 << (len(piece) - 1)

    def find(value: str, start: int, end: int) -> int:
        state = 0
        for position in range(start, end):
            state = (state << 1 | 1) & masks.get(value[position], anything)
            if state & done:
                return position + 1 - len(piece)
        return -1

    return find
