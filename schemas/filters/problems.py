"""The one error of filters, and JSON Pointers to its place."""

from __future__ import annotations


class FilterError(ValueError):
    """A filter can't be accepted; `pointer` (RFC 6901) leads to the place in the subscription."""

    def __init__(self, pointer: str, detail: str) -> None:
        """Keep the place and a sentence that says what was expected."""
        super().__init__(f"{pointer}: {detail}")
        self.pointer = pointer
        self.detail = detail


def member(pointer: str, token: str) -> str:
    """Extend a JSON Pointer by one step."""
    return f"{pointer}/{token.replace('~', '~0').replace('/', '~1')}"
